"""From per-row log-probs on every rank to one loss and one set of metrics.

Context parallelism: every rank sums its own rows, one all-reduce over the group completes the sums, and the gradient
passes through that all-reduce unchanged. Megatron then averages gradients over DP × CP, after its schedule multiplied
the loss by the CP size (megatron/core/pipeline_parallel/schedules.py, forward_step_calc_loss, 2-tuple branch): together
that is the plain sum over CP ranks and the mean over DP ranks.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_longpo.objective import Objective, PairSums, longpo_loss, token_divergence
from nemo_longpo.parallel.layout import PairRows

from .topology import current_topology

WORK = ("tokens", "flops")


class _SumOverContextRanks(torch.autograd.Function):
    """All-reduce (sum) forward, identity backward; see the module docstring."""

    @staticmethod
    def forward(ctx, partial: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = partial.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def sum_pair(logprobs: Tensor, rows: PairRows, cp_group: dist.ProcessGroup) -> PairSums:
    """Reduce log-probs [B, R] of this rank's rows to the sums of one pair (each [1]), complete over the CP group."""
    divergence = token_divergence(logprobs, rows.ref_logps)
    partial = torch.stack(
        [
            (logprobs * rows.chosen_mask).sum(),
            (logprobs * rows.rejected_mask).sum(),
            (rows.ref_logps * rows.chosen_mask).sum(),
            (rows.ref_logps * rows.rejected_mask).sum(),
            (logprobs * rows.nll_mask).sum(),
            (divergence * rows.chosen_mask).sum(),
        ]
    )
    counts = rows.chosen_tokens, rows.rejected_tokens, rows.sequence_tokens
    sums = _SumOverContextRanks.apply(partial, cp_group)
    return PairSums(*(value.view(1) for value in (*sums.unbind(), *counts)))


class LongPOLossReduction(MegatronLossReduction):
    """NeMo's hook between a micro-batch's output and the schedule; every metric is a mean over the batch's pairs.

    Besides those of `longpo_loss`, the `WORK` of a pair: its tokens, and the FLOPs of its forward and backward by
    `training_flops(trunk, chosen, rejected)`.
    """

    def __init__(self, objective: Objective, training_flops: Callable[[int, int, int], float]) -> None:
        super().__init__()
        self.objective = objective
        self.training_flops = training_flops

    def forward(self, batch: PairRows, forward_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = longpo_loss(sum_pair(forward_out, batch, current_topology().cp_group), self.objective)
        work = loss.new_tensor([batch.pair_tokens, self.training_flops(*batch.lengths)])
        return loss, {**metrics, **dict(zip(WORK, work, strict=True))}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Average each metric over micro-batches and data-parallel ranks (one pair per micro-batch)."""
        names = losses_reduced_per_micro_batch[0].keys()
        values = torch.stack([torch.stack(list(metrics.values())) for metrics in losses_reduced_per_micro_batch]).mean(
            0
        )
        topology = current_topology()
        dist.all_reduce(values, group=topology.dp_group)
        return dict(zip(names, values / topology.dp_size, strict=True))
