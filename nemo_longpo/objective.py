"""The LongPO objective and its relatives: tensors in, `(loss, metrics)` out. Pure mathematics.

Shape legend: B pairs. Every field of `PairSums` is [B]; a sum over tokens is already complete (over all turns and all
context-parallel ranks).
"""

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, fields
from typing import Literal, Optional, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_longpo.errors import InputError

LossType = Literal["longpo", "longpo_no_nll", "dpo", "sft_chosen", "sft_rejected", "sft_chosen_constraint", "solopo"]
Preference = Literal["sigmoid", "ipo", "hinge"]
RefContext = Literal["short", "long"]
Rewards = tuple[Tensor, Tensor]
"""Of chosen and rejected, [B] each."""

REF_CONTEXT_OF_LOSS: dict[LossType, RefContext | None] = {
    "longpo": "short",
    "longpo_no_nll": "short",
    "dpo": "long",
    "sft_chosen": None,
    "sft_rejected": None,
    "sft_chosen_constraint": "short",
    "solopo": "short",
}
"""What the reference model must have read for each loss: the chunk, πS(·|Ci), or the whole document; None: unused."""

WITH_PREFERENCE: tuple[LossType, ...] = ("longpo", "longpo_no_nll", "dpo", "solopo")
WITH_BETA: tuple[LossType, ...] = (*WITH_PREFERENCE, "sft_chosen_constraint")
WITH_SHORT_PROMPTS: tuple[LossType, ...] = ("solopo",)
USERS_OF: dict[str, tuple[LossType, ...]] = {
    **dict.fromkeys(("beta_exponent", "beta_tokens"), WITH_BETA),
    **dict.fromkeys(("alignment_weight", "align_rejected"), WITH_SHORT_PROMPTS),
}
"""Which losses use a setting; those that are not named here belong to the preference term."""

METRICS = (
    "loss",
    "loss/nll",
    "loss/longpo",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "ref_logps/chosen",
    "ref_logps/rejected",
)
SHORT_METRICS = (
    "loss/alignment",
    "rewards/short_chosen",
    "rewards/short_rejected",
    "rewards/short_margins",
    "rewards/short_accuracies",
)


@dataclass(frozen=True)
class Objective:
    """Which terms are trained, and how strongly.

    | loss_type               | loss                                                            |
    |-------------------------|-----------------------------------------------------------------|
    | `longpo`                | NLL(whole chosen sequence) + `preference_weight` · preference   |
    | `longpo_no_nll`, `dpo`  | preference (they differ in the shard's reference context)       |
    | `solopo`                | preference on short prompts + `alignment_weight` · alignment    |
    | `sft_chosen`            | NLL(chosen responses)                                           |
    | `sft_rejected`          | NLL(rejected responses)                                         |
    | `sft_chosen_constraint` | NLL(chosen responses) + `beta` · KL(πS on Ci ‖ πθ on C)          |

    `preference = −log σ(beta·(S_w − R_w) − beta·(S_l − R_l))`, arXiv 2502.13922. Its eq. 13 prints the log of a sum of
    probabilities; the released code sums log-probs over turns and tokens, and so do we.

    The other settings change this term, and compose. With the reward `r = beta·(S − R)` of an answer and the margin
    `m = r_w − r_l`, `preference = f(m)`:

    | setting                        | what it changes                                              | source           |
    |--------------------------------|--------------------------------------------------------------|------------------|
    | `preference="sigmoid"`         | `f(m) = −log σ(m − target_margin)`                           | arXiv 2305.18290 |
    | `preference="ipo"`             | `f(m) = (m/beta − 1/(2·beta))²`                              | arXiv 2310.12036 |
    | `preference="hinge"`           | `f(m) = max(0, 1 − m)`                                       | arXiv 2305.10425 |
    | `label_smoothing` ε            | `preference = (1 − ε)·f(m) + ε·f(−m)`                        | see below        |
    | `average_logprobs`             | `r = beta·(S − R) / response tokens of the answer`           | arXiv 2405.14734 |
    | `reference_free`               | `R = 0`, nothing of the reference is read                    | arXiv 2405.14734 |
    | `target_margin` γ              | the margin that rewards are pushed to, as above              | arXiv 2405.14734 |
    | `beta_exponent`, `beta_tokens` | β is `beta · (trunk tokens / beta_tokens) ** beta_exponent`  | this project     |

    IPO is its eq. 17, with sums over tokens; with `average_logprobs` it is what TRL computes. SLiC-HF has no reference
    and asks for δ more of log-prob: `hinge` with `reference_free` and `beta = 1/δ` is its loss divided by δ. SimPO is
    `longpo_no_nll` with `average_logprobs`, `reference_free` and `target_margin`. Label smoothing is the expected loss
    if a share ε of the pairs has its answers exchanged (https://ericmitchell.ai/cdpo.pdf); an exchanged pair misses
    `target_margin` too, while TRL's SimPO takes `−log σ(γ − m)` for it.

    β by length: the more document stands before an answer, the further πθ is from a πS that read only the chunk, and
    the sooner the sigmoid is flat. A negative exponent holds a long document to πS less. As a power law it is one
    curve through `beta` at `beta_tokens`, without a jump between two documents of nearly the same length. The trunk
    (document and first instruction) is common to both answers; their own lengths are what `average_logprobs` is for.

    SoLoPO, arXiv 2505.11166: the policy learns which answer is better where it sees only what matters, and to value an
    answer the same behind the whole document. With S′ = Σ log πθ(answer | chunk and instruction), over the tokens of
    all turns, and its reward `r′ = beta·(S′ − R)`,

        loss = f(r′_w − r′_l) + alignment_weight · (|r_w − r′_w| + |r_l − r′_l| if `align_rejected`)

    where f has all the settings above. Gradients go through both rewards of a difference. The reference, πS on Ci, is
    the same in both, so it cancels there, and `r − r′ = beta·(S − S′)`. A reward is of the whole answer, as everywhere
    here, so differences of two turns can cancel. The chosen answer alone is its "chosen-only" variant; that this is the
    default, and the default weight, are this project's choice.
    """

    loss_type: LossType = "longpo"
    beta: float = 0.1
    preference_weight: float = 0.01
    _: KW_ONLY
    preference: Preference = "sigmoid"
    label_smoothing: float = 0.0
    average_logprobs: bool = False
    reference_free: bool = False
    target_margin: float = 0.0
    beta_exponent: float = 0.0
    beta_tokens: Optional[int] = None  # noqa: UP045 (NeMo-Run's parser)
    alignment_weight: float = 1.0
    align_rejected: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("loss_type", get_args(LossType)), ("preference", get_args(Preference))):
            if getattr(self, name) not in choices:
                raise InputError(f"objective.{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        if not (self.beta > 0 and self.preference_weight >= 0):
            raise InputError(
                f"objective.beta must be > 0 and preference_weight >= 0; got {self.beta} and {self.preference_weight}."
            )
        for fault in (*self._faults_of_values(), *self._without_effect()):
            raise InputError(f"objective.{fault}.")

    def _faults_of_values(self) -> Iterator[str]:
        if not 0 <= self.label_smoothing < 0.5:
            yield f"label_smoothing is {self.label_smoothing}; give a share of exchanged pairs, from 0 to below 0.5"
        if not 0 <= self.target_margin < math.inf:
            yield f"target_margin is {self.target_margin}; give a finite margin of rewards, 0 or more"
        if not math.isfinite(self.beta_exponent):
            yield f"beta_exponent is {self.beta_exponent}; give a finite number"
        if (self.beta_exponent == 0) != (self.beta_tokens is None):
            yield (
                f"beta_exponent is {self.beta_exponent} and beta_tokens is {self.beta_tokens}; set both, for β by the "
                "document's length, or neither"
            )
        if self.beta_tokens is not None and self.beta_tokens < 1:
            yield f"beta_tokens is {self.beta_tokens}; give the length of document that beta is for, 1 token or more"
        if not 0 < self.alignment_weight < math.inf:
            yield (
                f"alignment_weight is {self.alignment_weight}; give a finite weight above 0, the long document is "
                "trained by this term alone"
            )

    def _without_effect(self) -> Iterator[str]:
        """Yield the settings that this loss would not use, if they are not at their defaults."""
        for field in list(fields(self))[3:]:
            value, fitting = getattr(self, field.name), USERS_OF.get(field.name, WITH_PREFERENCE)
            if value != field.default and self.loss_type not in fitting:
                yield (
                    f"{field.name} is {value}, which loss_type={self.loss_type} does not use; leave it at "
                    f"{field.default}, or choose one of {', '.join(fitting)}"
                )
        if self.target_margin and self.preference != "sigmoid":
            yield (
                f"target_margin is {self.target_margin}, but preference={self.preference} has a target of its own, "
                f"{'1/2' if self.preference == 'ipo' else '1'}; leave it at 0.0, or choose sigmoid"
            )

    @property
    def ref_context(self) -> RefContext | None:
        """What the reference model must have read; None if the loss reads no reference."""
        return None if self.reference_free else REF_CONTEXT_OF_LOSS[self.loss_type]

    @property
    def reads_short_prompts(self) -> bool:
        """Whether the policy reads every turn's short prompt besides the document."""
        return self.loss_type in WITH_SHORT_PROMPTS

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics that `longpo_loss` returns."""
        return (*METRICS, *SHORT_METRICS) if self.reads_short_prompts else METRICS


@dataclass(frozen=True, kw_only=True)
class PairSums:
    """What the objective needs to know of B pairs; natural logarithms.

    `chosen` and `rejected` are S_w and S_l (policy, whole document in context); `ref_chosen` and `ref_rejected` are R_w
    and R_l (reference, the same tokens). `sequence` is Σ log πθ over the chosen sequence's `sequence_tokens` trained
    positions. `chosen_divergence` is Σ over chosen tokens of the KL estimate of `token_divergence`; only
    `sft_chosen_constraint` reads it. `trunk_tokens`, the tokens before the answers, are needed for β by length;
    `short_chosen` and `short_rejected`, S′_w and S′_l (policy, each turn's short prompt in context), for `solopo`.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    sequence: Tensor
    chosen_divergence: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    sequence_tokens: Tensor
    trunk_tokens: Tensor | None = None
    short_chosen: Tensor | None = None
    short_rejected: Tensor | None = None


def token_divergence(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate KL(reference ‖ policy) per token drawn from the reference: `exp(d) − 1 − d`, `d = logps − ref_logps`.

    Non-negative and unbiased (the "k3" estimator, http://joschu.net/blog/kl-approx.html). Any shape.
    """
    difference = logps - ref_logps
    return torch.expm1(difference) - difference


def beta_of_pairs(sums: PairSums, objective: Objective) -> Tensor | float:
    """Return β of every pair. Raises InputError if it depends on the trunk's tokens and they are not given."""
    if objective.beta_tokens is None:
        return objective.beta
    if sums.trunk_tokens is None:
        raise InputError("objective.beta_exponent makes β depend on the document; give PairSums its trunk_tokens.")
    return objective.beta * (sums.trunk_tokens / objective.beta_tokens) ** objective.beta_exponent


def preference_loss(margins: Tensor, beta: Tensor | float, objective: Objective) -> Tensor:
    """Return the preference term of every pair from its margin of rewards, [B]; the docstring of `Objective` has it."""

    def of(margins: Tensor) -> Tensor:
        if objective.preference == "ipo":
            return ((margins - 0.5) / beta) ** 2
        if objective.preference == "hinge":
            return F.relu(1 - margins)
        return -F.logsigmoid(margins - objective.target_margin)

    exchanged = objective.label_smoothing
    return (1 - exchanged) * of(margins) + exchanged * of(-margins) if exchanged else of(margins)


def longpo_loss(sums: PairSums, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss over B pairs, and metrics under TRL's names, each the mean over B pairs, detached.

    Returns:
        `(loss, metrics)`; `loss` is a scalar, `metrics` holds a scalar for every name of `objective.metrics`:
        `loss/nll` is per token of what the NLL covers, `loss/longpo` is the preference term before its weight.
        `rewards/…` are those behind the whole document, with β of the pair; the preference term compares them, or, of
        `solopo`, `rewards/short_…`, and `loss/alignment` is how far both are apart, before its weight. Log-probs are
        sums over tokens. Of a `reference_free` objective the reference's are 0: it reads none.
    """
    none = torch.zeros_like(sums.chosen)
    ref_chosen, ref_rejected = (none, none) if objective.reference_free else (sums.ref_chosen, sums.ref_rejected)
    beta = beta_of_pairs(sums, objective)
    scale = (beta, beta)
    if objective.average_logprobs:
        scale = beta / sums.chosen_tokens, beta / sums.rejected_tokens
    rewards = scale[0] * (sums.chosen - ref_chosen), scale[1] * (sums.rejected - ref_rejected)
    compared, aligned = rewards, {}
    if objective.reads_short_prompts:
        if sums.short_chosen is None or sums.short_rejected is None:
            raise InputError(
                f"objective.loss_type={objective.loss_type} reads short prompts; give PairSums its short_chosen and "
                "short_rejected."
            )
        compared = scale[0] * (sums.short_chosen - ref_chosen), scale[1] * (sums.short_rejected - ref_rejected)
        aligned = _aligned(rewards, compared, objective)
    preference = preference_loss(compared[0] - compared[1], beta, objective)

    if objective.loss_type in WITH_PREFERENCE:
        nll = -sums.sequence / sums.sequence_tokens
    elif objective.loss_type == "sft_rejected":
        nll = -sums.rejected / sums.rejected_tokens
    else:
        nll = -sums.chosen / sums.chosen_tokens

    if objective.loss_type == "longpo":
        loss = nll + objective.preference_weight * preference
    elif objective.loss_type == "solopo":
        loss = preference + objective.alignment_weight * aligned["loss/alignment"]
    elif objective.loss_type in ("longpo_no_nll", "dpo"):
        loss = preference
    elif objective.loss_type == "sft_chosen_constraint":
        loss = nll + beta * sums.chosen_divergence / sums.chosen_tokens
    else:
        loss = nll

    metrics = {
        "loss": loss,
        "loss/nll": nll,
        "loss/longpo": preference,
        **_reward_metrics(rewards, "rewards/"),
        "logps/chosen": sums.chosen,
        "logps/rejected": sums.rejected,
        "ref_logps/chosen": ref_chosen,
        "ref_logps/rejected": ref_rejected,
        **aligned,
    }
    return loss.mean(), {name: value.detach().mean() for name, value in metrics.items()}


def _aligned(rewards: Rewards, short: Rewards, objective: Objective) -> dict[str, Tensor]:
    """Return the alignment term of every pair, and what else only the short prompts tell, under `SHORT_METRICS`."""
    chosen, rejected = ((behind - own).abs() for behind, own in zip(rewards, short, strict=True))
    alignment = chosen + rejected if objective.align_rejected else chosen
    return {"loss/alignment": alignment, **_reward_metrics(short, "rewards/short_")}


def _reward_metrics(rewards: Rewards, prefix: str) -> dict[str, Tensor]:
    chosen, rejected = rewards
    margins = chosen - rejected
    values = {"chosen": chosen, "rejected": rejected, "margins": margins, "accuracies": (margins > 0).float()}
    return {prefix + name: value for name, value in values.items()}
