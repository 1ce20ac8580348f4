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
    "trunk_tokens": 16000.0,
    "short_chosen": -11.0,
    "short_rejected": -13.0,
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
    "trunk_tokens": 500.0,
    "short_chosen": -9.5,
    "short_rejected": -3.0,
}
PREFERENCE = math.log(1 + math.exp(-0.2))
LOSSES = {
    "longpo": 70 / 20 + 0.01 * PREFERENCE,
    "longpo_no_nll": PREFERENCE,
    "dpo": PREFERENCE,
    "sft_chosen": 12 / 4,
    "sft_rejected": 15 / 6,
    "sft_chosen_constraint": 12 / 4 + 0.1 * 0.8 / 4,
    "solopo": math.log(1 + math.exp(-0.1)) + 0.1 * (12 - 11),
}
NLLS = {"sft_chosen": 12 / 4, "sft_rejected": 15 / 6, "sft_chosen_constraint": 12 / 4}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Settings, then of NUMBERS by hand: rewards of chosen and rejected, and the preference term. The log-ratios of chosen
# and rejected are −2 and −4, per token −1/2 and −2/3; without a reference −12 and −15, per token −3 and −5/2.
PREFERENCES: dict[str, tuple[dict, float, float, float]] = {
    "ipo": ({"preference": "ipo"}, -0.2, -0.4, (2 - 5) ** 2),
    "hinge": ({"preference": "hinge"}, -0.2, -0.4, 1 - 0.2),
    "hinge, satisfied": ({"preference": "hinge", "beta": 0.75}, -1.5, -3.0, 0.0),
    "smoothed": (
        {"label_smoothing": 0.1},
        -0.2,
        -0.4,
        -0.9 * math.log(sigmoid(0.2)) - 0.1 * math.log(1 - sigmoid(0.2)),
    ),
    "target": ({"target_margin": 0.5}, -0.2, -0.4, -math.log(sigmoid(0.2 - 0.5))),
    "per token": ({"average_logprobs": True, "beta": 2.0}, -1.0, -4 / 3, -math.log(sigmoid(1 / 3))),
    "no reference": ({"reference_free": True}, -1.2, -1.5, -math.log(sigmoid(0.3))),
    "SimPO": (
        {"average_logprobs": True, "reference_free": True, "target_margin": 0.5, "beta": 2.0},
        -6.0,
        -5.0,
        -math.log(sigmoid(-1 - 0.5)),
    ),
    "SimPO, smoothed": (
        {"average_logprobs": True, "reference_free": True, "target_margin": 0.5, "beta": 2.0, "label_smoothing": 0.2},
        -6.0,
        -5.0,
        -0.8 * math.log(sigmoid(-1 - 0.5)) - 0.2 * math.log(sigmoid(1 - 0.5)),
    ),
    "SLiC": ({"preference": "hinge", "reference_free": True, "beta": 0.25}, -3.0, -3.75, (4 - (-12 + 15)) / 4),
    "by length": ({"beta_exponent": -0.5, "beta_tokens": 4000}, -0.1, -0.2, -math.log(sigmoid(0.1))),
    "by length, growing": ({"beta_exponent": 1.0, "beta_tokens": 8000}, -0.4, -0.8, -math.log(sigmoid(0.4))),
    "ipo per token": ({"preference": "ipo", "average_logprobs": True}, -0.05, -2 / 30, (1 / 6 - 5) ** 2),
    "ipo, smoothed": ({"preference": "ipo", "label_smoothing": 0.1}, -0.2, -0.4, 0.9 * 3**2 + 0.1 * 7**2),
    "ipo by length": (
        {"preference": "ipo", "beta_exponent": -0.5, "beta_tokens": 4000},
        -0.1,
        -0.2,
        (2 - 1 / (2 * 0.05)) ** 2,
    ),
    "hinge, smoothed": ({"preference": "hinge", "label_smoothing": 0.1}, -0.2, -0.4, 0.9 * 0.8 + 0.1 * 1.2),
}
SUMS_WITH_GRADIENT = ("chosen", "rejected", "sequence", "chosen_divergence", "short_chosen", "short_rejected")


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


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("loss_type", ["longpo", "longpo_no_nll", "dpo"])
def test_preference_is_the_formula(name, loss_type):
    settings, chosen, rejected, preference = PREFERENCES[name]
    loss, metrics = longpo_loss(pair_sums(NUMBERS), Objective(loss_type, preference_weight=0.5, **settings))
    expected = 70 / 20 + 0.5 * preference if loss_type == "longpo" else preference
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert metrics["loss/longpo"].item() == pytest.approx(preference, rel=1e-12, abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(chosen, rel=1e-12)
    assert metrics["rewards/rejected"].item() == pytest.approx(rejected, rel=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(chosen - rejected, rel=1e-12)
    assert metrics["rewards/accuracies"].item() == (chosen > rejected)
    for side in ("chosen", "rejected"):
        assert metrics[f"logps/{side}"].item() == NUMBERS[side], "a sum over tokens, whatever the reward is"
        used = 0.0 if settings.get("reference_free") else NUMBERS[f"ref_{side}"]
        assert metrics[f"ref_logps/{side}"].item() == used


@pytest.mark.parametrize("align_rejected", [False, True])
@pytest.mark.parametrize("name", PREFERENCES)
def test_solopo_is_the_formula(name, align_rejected):
    """The short prompts have the sums of NUMBERS; the document's are 1 lower for chosen, and 3 higher for rejected."""
    settings, chosen, rejected, preference = PREFERENCES[name]
    short = {"short_chosen": NUMBERS["chosen"], "short_rejected": NUMBERS["rejected"]}
    numbers = NUMBERS | short | {"chosen": NUMBERS["chosen"] - 1, "rejected": NUMBERS["rejected"] + 3}
    objective = Objective("solopo", alignment_weight=0.25, align_rejected=align_rejected, **settings)
    loss, metrics = longpo_loss(pair_sums(numbers), objective)
    log_ratios = (-12, -15) if settings.get("reference_free") else (-2, -4)
    per_nat = chosen / log_ratios[0], rejected / log_ratios[1]
    alignment = per_nat[0] + (3 * per_nat[1] if align_rejected else 0)
    assert loss.item() == pytest.approx(preference + 0.25 * alignment, rel=1e-12)
    assert tuple(metrics) == objective.metrics
    expected = {
        "loss": loss.item(),
        "loss/nll": 70 / 20,
        "loss/longpo": preference,
        "loss/alignment": alignment,
        "rewards/chosen": chosen - per_nat[0],
        "rewards/rejected": rejected + 3 * per_nat[1],
        "rewards/short_chosen": chosen,
        "rewards/short_rejected": rejected,
        "rewards/short_margins": chosen - rejected,
        "rewards/short_accuracies": float(chosen > rejected),
    }
    for metric, value in expected.items():
        assert metrics[metric].item() == pytest.approx(value, rel=1e-12, abs=1e-12), metric


def test_solopo_needs_the_sums_of_short_prompts():
    sums = replace(pair_sums(NUMBERS), short_rejected=None)
    assert longpo_loss(sums, Objective())[0].item() == pytest.approx(LOSSES["longpo"], rel=1e-12)
    with pytest.raises(ValueError, match="loss_type=solopo reads short prompts; give PairSums its short_chosen and"):
        longpo_loss(sums, Objective("solopo"))


def test_constraint_takes_beta_by_length():
    objective = Objective("sft_chosen_constraint", beta_exponent=-0.5, beta_tokens=4000)
    assert longpo_loss(pair_sums(NUMBERS), objective)[0].item() == pytest.approx(12 / 4 + 0.05 * 0.8 / 4, rel=1e-12)


def test_beta_by_length_needs_the_length():
    sums = replace(pair_sums(NUMBERS), trunk_tokens=None)
    assert longpo_loss(sums, Objective())[0].item() == pytest.approx(LOSSES["longpo"], rel=1e-12)
    with pytest.raises(
        ValueError, match="beta_exponent makes β depend on the document; give PairSums its trunk_tokens"
    ):
        longpo_loss(sums, Objective(beta_exponent=-0.5, beta_tokens=4000))


@pytest.mark.parametrize("settings", [{}, {"preference": "ipo", "average_logprobs": True}, {"preference": "hinge"}])
def test_without_a_reference_none_is_read(settings):
    """Neither by the loss nor by its gradient or a metric: one that is not a number leaves no trace."""
    nothing = torch.full((1,), math.nan, dtype=torch.float64)
    sums = replace(
        pair_sums(NUMBERS), ref_chosen=nothing, ref_rejected=nothing, chosen_divergence=nothing.clone().requires_grad_()
    )
    trained = sums.chosen.requires_grad_()
    loss, metrics = longpo_loss(sums, Objective(reference_free=True, **settings))
    loss.backward()
    assert trained.grad is not None
    assert torch.isfinite(torch.stack([loss, trained.grad[0], *metrics.values()])).all()


OBJECTIVES: dict[str, dict] = {
    **{name: {"loss_type": name} for name in LOSSES},
    **{name: settings for name, (settings, *_) in PREFERENCES.items()},
    "constraint by length": {"loss_type": "sft_chosen_constraint", "beta_exponent": -0.5, "beta_tokens": 4000},
    "solopo of both answers by length": {
        "loss_type": "solopo",
        "align_rejected": True,
        "alignment_weight": 0.3,
        "beta_exponent": -0.5,
        "beta_tokens": 4000,
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_several_pairs_give_their_mean(name):
    """Each pair is divided by its own token count before the mean: a long document does not outweigh a short one."""
    objective = Objective(**OBJECTIVES[name])
    both_loss, both = longpo_loss(pair_sums(NUMBERS, OTHER_NUMBERS), objective)
    alone = [longpo_loss(pair_sums(numbers), objective) for numbers in (NUMBERS, OTHER_NUMBERS)]
    assert both_loss.item() == pytest.approx(sum(loss.item() for loss, _ in alone) / 2, rel=1e-12)
    for name in objective.metrics:
        assert both[name].item() == pytest.approx(sum(m[name].item() for _, m in alone) / 2, rel=1e-12), name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_finite_differences(name):
    objective = Objective(preference_weight=0.5, **OBJECTIVES[name])
    sums = pair_sums(NUMBERS, OTHER_NUMBERS)
    trained = {name: getattr(sums, name).requires_grad_() for name in SUMS_WITH_GRADIENT}
    loss, metrics = longpo_loss(sums, objective)
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
    assert not any(value.requires_grad for value in metrics.values())

    step = 1e-6
    for (summed, values), gradient in zip(trained.items(), gradients, strict=True):
        for pair in range(2):
            nudge = torch.zeros(2, dtype=torch.float64)
            nudge[pair] = step
            up, down = (
                longpo_loss(replace(sums, **{summed: values.detach() + sign * nudge}), objective)[0] for sign in (1, -1)
            )
            expected = (up - down).item() / (2 * step)
            assert gradient[pair].item() == pytest.approx(expected, rel=1e-6, abs=1e-9), (summed, pair)


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
