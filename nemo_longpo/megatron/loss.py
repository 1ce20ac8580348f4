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
from nemo_longpo.parallel.collectives import sum_over_ranks
from nemo_longpo.parallel.layout import PairRows

from .topology import current_topology

WORK = ("tokens", "flops")


def sum_pair(logprobs: Tensor, rows: PairRows, cp_group: dist.ProcessGroup) -> PairSums:
    """Reduce log-probs [B, R] of this rank's rows to the sums of one pair (each [1]), complete over the CP group."""
    divergence = token_divergence(logprobs, rows.ref_logps)
    partial = {
        "chosen": (logprobs * rows.chosen_mask).sum(),
        "rejected": (logprobs * rows.rejected_mask).sum(),
        "ref_chosen": (rows.ref_logps * rows.chosen_mask).sum(),
        "ref_rejected": (rows.ref_logps * rows.rejected_mask).sum(),
        "sequence": (logprobs * rows.nll_mask).sum(),
        "chosen_divergence": (divergence * rows.chosen_mask).sum(),
    }
    sums = sum_over_ranks(torch.stack(list(partial.values())), cp_group)
    return PairSums(
        **{name: value.view(1) for name, value in zip(partial, sums, strict=True)},
        chosen_tokens=rows.chosen_tokens.view(1),
        rejected_tokens=rows.rejected_tokens.view(1),
        sequence_tokens=rows.sequence_tokens.view(1),
    )


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
        work = {"tokens": batch.pair_tokens, "flops": self.training_flops(*batch.lengths)}
        return loss, metrics | {name: loss.new_tensor(work[name]) for name in WORK}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Average each metric over micro-batches and data-parallel ranks (one pair per micro-batch)."""
        names, topology = losses_reduced_per_micro_batch[0], current_topology()
        pairs = [torch.stack([metrics[name] for name in names]) for metrics in losses_reduced_per_micro_batch]
        values = torch.stack(pairs).mean(0)
        dist.all_reduce(values, group=topology.dp_group)
        return dict(zip(names, values / topology.dp_group.size(), strict=True))
