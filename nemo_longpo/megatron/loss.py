"""The loss of a micro-batch, from the log-probs of each rank's rows.

Context-parallel ranks sum their own rows, one all-reduce over the group completes the sums, and the gradient passes
through that all-reduce unchanged. Megatron then averages gradients over DP × CP, after its schedule multiplied the loss
by the CP size (megatron/core/pipeline_parallel/schedules.py, forward_step_calc_loss, 2-tuple branch): together that is
the sum over CP ranks and the mean over DP ranks.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed as dist

from nemo_longpo.costs import flops, model_shape
from nemo_longpo.objective import Objective, PairSums, longpo_loss, token_divergence
from nemo_longpo.parallel import collectives, layout, segments
from nemo_longpo.placement import PairLayout

WORK = ("tokens", "flops")
"""What a pair costs: its tokens, and the FLOPs of its forward and backward."""


def sum_pair(logprobs: Tensor, rows: layout.PairRows, objective: Objective, cp_group: dist.ProcessGroup) -> PairSums:
    """Reduce log-probs [B, R] of this rank's rows to the sums of one pair (each [1]), complete over the CP group.

    The document's tree comes first; what lies behind it are short prompts. Only a loss that trains the divergence gets
    it, of the chosen rows alone: elsewhere a reference far below the policy makes exp(d) infinite, and a gradient of 0
    through it is not a number.
    """
    document, *_ = segments.local_slices(rows.trees, cp_group.size())
    behind = slice(document.stop, None)

    def total(values: Tensor, mask: Tensor, where: slice = document) -> Tensor:
        return (values[:, where] * mask[:, where]).sum()

    divergence = torch.zeros_like(logprobs)
    if objective.loss_type == "sft_chosen_constraint":
        divergence = token_divergence(logprobs, torch.where(rows.chosen_mask > 0, rows.ref_logps, logprobs))
    partial = {
        "chosen": total(logprobs, rows.chosen_mask),
        "rejected": total(logprobs, rows.rejected_mask),
        "ref_chosen": total(rows.ref_logps, rows.chosen_mask),
        "ref_rejected": total(rows.ref_logps, rows.rejected_mask),
        "sequence": total(logprobs, rows.nll_mask),
        "chosen_divergence": total(divergence, rows.chosen_mask),
        "short_chosen": total(logprobs, rows.chosen_mask, behind),
        "short_rejected": total(logprobs, rows.rejected_mask, behind),
    }
    sums = collectives.sum_over_ranks(torch.stack(list(partial.values())), cp_group)
    return PairSums(
        **{name: value.view(1) for name, value in zip(partial, sums, strict=True)},
        chosen_tokens=rows.chosen_tokens.view(1),
        rejected_tokens=rows.rejected_tokens.view(1),
        sequence_tokens=rows.sequence_tokens.view(1),
        trunk_tokens=logprobs.new_full((1,), rows.lengths[0][0]),
    )


def logprobs_of(module: Any, rows: layout.PairRows) -> Any:
    """Call a pipeline stage, or a trainer's wrapper of one, with the rows of a pair; see `LogprobGPTModel`."""
    return module(rows.tokens, rows.position_ids, segments.to_tensor(rows.trees), labels=rows.labels)


class PairLoss:
    """`PairLoss(…)(rows, logprobs)` returns loss and metrics of one pair: those of `longpo_loss`, and its `WORK`.

    Args:
        config: the model's configuration by field names, as in NeMo.
        layout: how the pair became rows, see `lay_out_pair`.
    """

    def __init__(self, objective: Objective, config: Mapping[str, Any], layout: PairLayout):
        self.objective = objective
        shape = model_shape.ModelShape.from_nemo(config, "the model's configuration")
        self._training_flops = partial(flops.training_flops, shape, layout=layout)

    def __call__(
        self, rows: layout.PairRows, logprobs: Tensor, cp_group: dist.ProcessGroup
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = longpo_loss(sum_pair(logprobs, rows, self.objective, cp_group), self.objective)
        document, *short = rows.lengths
        work = {"tokens": rows.pair_tokens, "flops": self._training_flops(flops.PairLengths(*document, short))}
        return loss, metrics | {name: loss.new_tensor(work[name]) for name in WORK}
