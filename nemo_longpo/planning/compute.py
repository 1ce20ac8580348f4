"""Seconds that one GPU computes for one pair: the operations of each kind of kernel, over the speed that it reaches.

Forward operations of a pair are those of `costs.flops`; with r the share of them that is recomputed:

| kind                        | operations              | rate                              |
|-----------------------------|-------------------------|-----------------------------------|
| matrices of the layers      | (3 + r) · forward       | `matrices`                        |
| attention, trunk, branches  | (1 + r) · forward       | `trunk_forward`, `branch_forward` |
|                             | 2.5 · forward           | `…_backward`                      |
| log-probs                   | 4 · forward             | `logprobs`                        |
| element-wise, in bytes      | `element_wise_widths`   | `element_wise`                    |

Context and tensor parallelism divide all of them, pipeline stages all but the log-probs, which the last one computes.
"""

from dataclasses import asdict, dataclass, replace

from nemo_longpo.costs import flops
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.costs.rates import Rates
from nemo_longpo.placement import Placement

from .job import Job

ATTENTION_BACKWARD = 2.5
"""Products of attention's backward per product of its forward: it forms the scores anew."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Seconds by kind of kernel."""

    matrices: float
    trunk_attention: float
    branch_attention: float
    logprobs: float
    element_wise: float

    @property
    def total(self) -> float:
        return float(sum(asdict(self).values()))

    def times(self, factor: float) -> "Compute":
        return Compute(**{kind: factor * seconds for kind, seconds in asdict(self).items()})


def compute_seconds(job: Job, placement: Placement, rates: Rates) -> Compute:
    """Estimate one pair on one GPU of the last pipeline stage; see the table above."""
    again = recomputed(job, placement)
    layers = _layers(job, placement, rates, flops.Recomputed(1 + again.linear, 1 + again.attention), backward=1)
    output = flops.output_flops(job.shape, job.lengths.scored) / (placement.tp * placement.cp)
    return replace(layers, logprobs=4 * output / rates.logprobs)


def forward_seconds(job: Job, placement: Placement, rates: Rates) -> Compute:
    """Estimate the first forward of one pair through the layers of a pipeline stage, on one GPU."""
    return _layers(job, placement, rates, flops.Recomputed(1, 1), backward=0)


def _layers(job: Job, placement: Placement, rates: Rates, forwards: flops.Recomputed, backward: int) -> Compute:
    """Add up so many forwards of matrices and of attention, and one backward or none."""
    forward = flops.layers_by_part(*job.pair)
    stage = placement.tp * placement.cp * placement.pp

    def attention(operations: float, forward_rate: float, backward_rate: float) -> float:
        scored = forwards.attention / forward_rate + backward * ATTENTION_BACKWARD / backward_rate
        return operations / stage * scored

    once, back = element_wise_widths(job.shape)
    rows = job.rows_per_gpu(placement) * job.stage_layers(placement) / placement.tp
    moved = rows * (forwards.linear * once + backward * back) * job.number_bytes
    return Compute(
        matrices=(forwards.linear + backward * flops.BACKWARD) * forward.linear / stage / rates.matrices,
        trunk_attention=attention(forward.trunk, rates.trunk_forward, rates.trunk_backward),
        branch_attention=attention(forward.branches, rates.branch_forward, rates.branch_backward),
        logprobs=0.0,
        element_wise=moved / rates.element_wise,
    )


def element_wise_widths(shape: ModelShape) -> tuple[float, float]:
    """Count the numbers that a layer's element-wise kernels read and write per row, forward and backward.

    As NeMo runs Mistral and Qwen2.5, unfused (letters as in memory.py). Forward: two norms 4h, two sums 6h, rotary
    angles 10(A + K), the gate 7f. Backward: 6h, 6h, 12(A + K) with the gradients of the parts put together, 13f.
    """
    rotated = shape.query_size + shape.kv_size
    return 10 * shape.hidden + 10 * rotated + 7 * shape.ffn, 12 * shape.hidden + 12 * rotated + 13 * shape.ffn


def recomputed(job: Job, placement: Placement) -> flops.Recomputed:
    """Return the shares of the layers' forward that run a second time, by FLOPs.

    A feed-forward part in tiles runs again in the backward, if its whole layer does not: then it runs there alone.
    """
    shape, layers = job.shape, job.stage_layers(placement)
    whole, parts = placement.recomputed_layers(layers) / layers, placement.recomputed_parts
    feed_forward = 3 * shape.hidden * shape.ffn / shape.layer_matrices
    times = ("mlp" in parts) + (1 - whole if placement.mlp_tile_tokens else 0)
    return flops.Recomputed(linear=whole + times * feed_forward, attention=whole + float("core_attn" in parts))
