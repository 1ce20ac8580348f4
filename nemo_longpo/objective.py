"""The LongPO objective and its relatives: tensors in, `(loss, metrics)` out. Pure mathematics.

Shape legend: B pairs. Every field of `PairSums` is [B]; a sum over tokens is already complete (over all turns and all
context-parallel ranks).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_longpo.errors import InputError

LossType = Literal["longpo", "longpo_no_nll", "dpo", "sft_chosen", "sft_rejected", "sft_chosen_constraint"]
RefContext = Literal["short", "long"]

REF_CONTEXT_OF_LOSS: dict[LossType, RefContext | None] = {
    "longpo": "short",
    "longpo_no_nll": "short",
    "dpo": "long",
    "sft_chosen": None,
    "sft_rejected": None,
    "sft_chosen_constraint": "short",
}
"""What the reference model must have read for each loss: the chunk, πS(·|Ci), or the whole document; None: unused."""

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


@dataclass(frozen=True)
class Objective:
    """Which terms are trained, and how strongly.

    | loss_type               | loss                                                            |
    |-------------------------|-----------------------------------------------------------------|
    | `longpo`                | NLL(whole chosen sequence) + `preference_weight` · preference   |
    | `longpo_no_nll`, `dpo`  | preference (they differ in the shard's reference context)       |
    | `sft_chosen`            | NLL(chosen responses)                                           |
    | `sft_rejected`          | NLL(rejected responses)                                         |
    | `sft_chosen_constraint` | NLL(chosen responses) + `beta` · KL(πS on Ci ‖ πθ on C)          |

    `preference = −log σ(beta·(S_w − R_w) − beta·(S_l − R_l))`, arXiv 2502.13922. Its eq. 13 prints the log of a sum of
    probabilities; the released code sums log-probs over turns and tokens, and so do we.
    """

    loss_type: LossType = "longpo"
    beta: float = 0.1
    preference_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.loss_type not in get_args(LossType):
            raise InputError(
                f"objective.loss_type is {self.loss_type!r}; choose one of {', '.join(get_args(LossType))}."
            )
        if not (self.beta > 0 and self.preference_weight >= 0):
            raise InputError(
                f"objective.beta must be > 0 and preference_weight >= 0; got {self.beta} and {self.preference_weight}."
            )


@dataclass(frozen=True, kw_only=True)
class PairSums:
    """What the objective needs to know of B pairs; natural logarithms.

    `chosen` and `rejected` are S_w and S_l (policy, whole document in context); `ref_chosen` and `ref_rejected` are R_w
    and R_l (reference, the same tokens). `sequence` is Σ log πθ over the chosen sequence's `sequence_tokens` trained
    positions. `chosen_divergence` is Σ over chosen tokens of the KL estimate of `token_divergence`.
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


def token_divergence(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate KL(reference ‖ policy) per token drawn from the reference: `exp(d) − 1 − d`, `d = logps − ref_logps`.

    Non-negative and unbiased (the "k3" estimator, http://joschu.net/blog/kl-approx.html). Any shape.
    """
    difference = logps - ref_logps
    return torch.expm1(difference) - difference


def longpo_loss(sums: PairSums, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss over B pairs, and metrics under TRL's names, each the mean over B pairs, detached.

    Returns:
        `(loss, metrics)`; `loss` is a scalar, `metrics` holds a scalar for every name of `METRICS`: `loss/nll` is per
        token of what the NLL covers, `loss/longpo` is the preference term before its weight.
    """
    rewards_chosen = objective.beta * (sums.chosen - sums.ref_chosen)
    rewards_rejected = objective.beta * (sums.rejected - sums.ref_rejected)
    margins = rewards_chosen - rewards_rejected
    preference = -F.logsigmoid(margins)

    if objective.loss_type in ("longpo", "longpo_no_nll", "dpo"):
        nll = -sums.sequence / sums.sequence_tokens
    elif objective.loss_type == "sft_rejected":
        nll = -sums.rejected / sums.rejected_tokens
    else:
        nll = -sums.chosen / sums.chosen_tokens

    if objective.loss_type == "longpo":
        loss = nll + objective.preference_weight * preference
    elif objective.loss_type in ("longpo_no_nll", "dpo"):
        loss = preference
    elif objective.loss_type == "sft_chosen_constraint":
        loss = nll + objective.beta * sums.chosen_divergence / sums.chosen_tokens
    else:
        loss = nll

    metrics = {
        "loss": loss,
        "loss/nll": nll,
        "loss/longpo": preference,
        "rewards/chosen": rewards_chosen,
        "rewards/rejected": rewards_rejected,
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).float(),
        "logps/chosen": sums.chosen,
        "logps/rejected": sums.rejected,
        "ref_logps/chosen": sums.ref_chosen,
        "ref_logps/rejected": sums.ref_rejected,
    }
    return loss.mean(), {name: value.detach().mean() for name, value in metrics.items()}
