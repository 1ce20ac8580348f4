"""Compare the objective with explicit formulas on literal numbers."""

import math
from dataclasses import fields, replace

import pytest
import torch

from nemo_longpo.objective import METRICS, Objective, PairSums, longpo_loss, token_divergence

# beta 0.1: rewards −0.2 and −0.4, so the margin is 0.2.
NUMBERS = {
    "chosen": -12.0,
    "rejected": -15.0,
    "ref_chosen": -10.0,
    "ref_rejected": -11.0,
    "sequence": -70.0,
    "chosen_divergence": 0.8,
    "chosen_tokens": 4.0,
    "rejected_tokens": 6.0,
    "sequence_tokens": 20.0,
}
OTHER_NUMBERS = {
    "chosen": -9.0,
    "rejected": -4.0,
    "ref_chosen": -8.5,
    "ref_rejected": -6.0,
    "sequence": -33.0,
    "chosen_divergence": 0.3,
    "chosen_tokens": 3.0,
    "rejected_tokens": 2.0,
    "sequence_tokens": 11.0,
}
PREFERENCE = math.log(1 + math.exp(-0.2))
LOSSES = {
    "longpo": 70 / 20 + 0.01 * PREFERENCE,
    "longpo_no_nll": PREFERENCE,
    "dpo": PREFERENCE,
    "sft_chosen": 12 / 4,
    "sft_rejected": 15 / 6,
    "sft_chosen_constraint": 12 / 4 + 0.1 * 0.8 / 4,
}
NLLS = {"sft_chosen": 12 / 4, "sft_rejected": 15 / 6, "sft_chosen_constraint": 12 / 4}
SUMS_WITH_GRADIENT = ("chosen", "rejected", "sequence", "chosen_divergence")


def pair_sums(*pairs: dict[str, float]) -> PairSums:
    return PairSums(**{name: torch.tensor([pair[name] for pair in pairs], dtype=torch.float64) for name in pairs[0]})


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_is_the_formula(loss_type):
    loss, metrics = longpo_loss(pair_sums(NUMBERS), Objective(loss_type=loss_type))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(LOSSES[loss_type], rel=1e-12)
    assert metrics["loss"].item() == loss.item()
    assert metrics["loss/nll"].item() == pytest.approx(NLLS.get(loss_type, 70 / 20), rel=1e-12)


def test_beta_and_weight_follow_the_formula():
    """Every number of the objective differs from its default."""
    objective = Objective(beta=0.5, preference_weight=2.0)
    expected = 70 / 20 + 2.0 * math.log(1 + math.exp(-(0.5 * -2 - 0.5 * -4)))
    assert longpo_loss(pair_sums(NUMBERS), objective)[0].item() == pytest.approx(expected, rel=1e-12)
    constraint = Objective("sft_chosen_constraint", beta=0.5, preference_weight=2.0)
    assert longpo_loss(pair_sums(NUMBERS), constraint)[0].item() == pytest.approx(3.0 + 0.5 * 0.8 / 4, rel=1e-12)


def test_metrics_have_trl_names_and_values():
    _, metrics = longpo_loss(pair_sums(NUMBERS), Objective())
    expected = {
        "loss": 70 / 20 + 0.01 * PREFERENCE,
        "loss/nll": 70 / 20,
        "loss/longpo": PREFERENCE,
        "rewards/chosen": 0.1 * (-12 + 10),
        "rewards/rejected": 0.1 * (-15 + 11),
        "rewards/margins": 0.2,
        "rewards/accuracies": 1.0,
        "logps/chosen": -12.0,
        "logps/rejected": -15.0,
        "ref_logps/chosen": -10.0,
        "ref_logps/rejected": -11.0,
    }
    assert tuple(metrics) == METRICS == tuple(expected)
    for name, value in metrics.items():
        assert value.shape == (), name
        assert value.item() == pytest.approx(expected[name], rel=1e-12), name


def test_accuracy_counts_only_positive_margins():
    tie = {**NUMBERS, "rejected": NUMBERS["ref_rejected"], "chosen": NUMBERS["ref_chosen"]}
    _, metrics = longpo_loss(pair_sums(NUMBERS, OTHER_NUMBERS, tie, tie), Objective())
    assert metrics["rewards/accuracies"].item() == 0.25


@pytest.mark.parametrize("loss_type", LOSSES)
def test_several_pairs_give_their_mean(loss_type):
    """Each pair is divided by its own token count before the mean: a long document does not outweigh a short one."""
    objective = Objective(loss_type=loss_type)
    both_loss, both = longpo_loss(pair_sums(NUMBERS, OTHER_NUMBERS), objective)
    alone = [longpo_loss(pair_sums(numbers), objective) for numbers in (NUMBERS, OTHER_NUMBERS)]
    assert both_loss.item() == pytest.approx(sum(loss.item() for loss, _ in alone) / 2, rel=1e-12)
    for name in METRICS:
        assert both[name].item() == pytest.approx(sum(m[name].item() for _, m in alone) / 2, rel=1e-12), name


@pytest.mark.parametrize("loss_type", LOSSES)
def test_gradients_equal_finite_differences(loss_type):
    sums = pair_sums(NUMBERS, OTHER_NUMBERS)
    trained = {name: getattr(sums, name).requires_grad_() for name in SUMS_WITH_GRADIENT}
    loss, metrics = longpo_loss(sums, Objective(loss_type=loss_type, preference_weight=0.5))
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
    assert not any(value.requires_grad for value in metrics.values())

    step = 1e-6
    for (name, values), gradient in zip(trained.items(), gradients, strict=True):
        for pair in range(2):
            nudge = torch.zeros(2, dtype=torch.float64)
            nudge[pair] = step
            up, down = (
                longpo_loss(replace(sums, **{name: values.detach() + sign * nudge}), Objective(loss_type, 0.1, 0.5))[0]
                for sign in (1, -1)
            )
            expected = (up - down).item() / (2 * step)
            assert gradient[pair].item() == pytest.approx(expected, rel=1e-6, abs=1e-9), (name, pair)


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_extreme_margins_do_not_overflow(margin):
    """fp32, as in training: the preference goes to 0 or grows linearly, and its slope stays in [−β, 0]."""
    sums = PairSums(**{field.name: torch.ones(1) for field in fields(PairSums)})
    chosen = torch.tensor([1.0 + margin / 0.1], requires_grad=True)
    loss, _ = longpo_loss(replace(sums, chosen=chosen), Objective("dpo", beta=0.1))
    loss.backward()
    assert loss.item() == pytest.approx(max(-margin, 0.0), rel=1e-4)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.1 if margin < 0 else 0.0)


def test_token_divergence_is_the_k3_estimate():
    logps = torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64)
    ref_logps = torch.tensor([-1.0, -1.5, -2.5, -3.0], dtype=torch.float64)
    divergence = token_divergence(logps, ref_logps)
    assert divergence[[0, 3]].tolist() == [0.0, 0.0]
    assert divergence[1].item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)
    assert divergence[2].item() == pytest.approx(math.exp(2.0) - 1 - 2.0)


def test_token_divergence_is_never_negative():
    """Also where the two differ by less than fp32 resolves next to 1."""
    difference = torch.cat([torch.logspace(-12, 1, 200), -torch.logspace(-12, 1, 200)])
    assert (token_divergence(difference, torch.zeros(())) >= 0).all()
    assert token_divergence(torch.tensor(1e-3), torch.tensor(0.0)).item() == pytest.approx(5e-7, rel=1e-3)


def test_token_divergence_averages_to_the_kl():
    """Over tokens drawn from the reference its mean is KL(reference ‖ policy)."""
    reference = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    policy = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    mean = (reference * token_divergence(policy.log(), reference.log())).sum()
    assert mean.item() == pytest.approx((reference * (reference / policy).log()).sum().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "kto"}, "'kto'; choose one of longpo, longpo_no_nll, dpo, sft_chosen, sft_rejected"),
        ({"beta": 0.0}, "beta must be > 0"),
        ({"beta": -0.1}, "beta must be > 0"),
        ({"preference_weight": -1.0}, "preference_weight >= 0; got 0.1 and -1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


def test_defaults_are_the_papers():
    assert Objective() == Objective(loss_type="longpo", beta=0.1, preference_weight=0.01)
