"""Time of an optimizer step: computing, exposed communication, the pipeline's idle share, the optimizer.

What is sent, per layer and pair (letters as in memory.py, W ranks of a group, each sends (W − 1) / W of a whole):

| who             | forward                        | backward                       | hidden behind  |
|-----------------|--------------------------------|--------------------------------|----------------|
| tensor parallel | 4 · R · h · b · (W−1)/W        | 6 · R · h · b · (W−1)/W        | nothing        |
| trunk's ring    | 2K · R · b · (W−1)/tp          | 4K · R · b · (W−1)/tp          | its attention  |
| branches        | `branch_traffic` / tp          | `branch_traffic` / tp          | nothing        |

Inputs of layers in host memory are copied while a layer computes; what takes longer than that layer is not hidden.

Once per step: gradients to their owners and weights back, over dp · cp ranks. Recomputed layers send their forward
twice.
"""

from dataclasses import dataclass

from nemo_longpo.costs import flops
from nemo_longpo.costs.devices import Gpu
from nemo_longpo.costs.rates import Rates, rates_of
from nemo_longpo.placement import Placement

from .compute import ATTENTION_BACKWARD, Compute, compute_seconds, forward_seconds, recomputed
from .job import Job
from .memory import parameters_per_gpu

ADAM = 28
"""Bytes of memory traffic per parameter: its gradient, and its fp32 weight and both averages read and written."""

HOST_OPTIMIZER = 20e9
"""Bytes per second of memory traffic that the CPU's Adam reaches per GPU of a node, assumed."""


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind in equal nodes. `measured` are rates of this machine, instead of those known of its kind."""

    gpu: Gpu
    gpus: int = 8
    gpus_per_node: int = Placement.gpus_per_node
    measured: Rates | None = None

    @property
    def rates(self) -> Rates:
        return self.measured or rates_of(self.gpu)

    def link(self, ranks: int) -> float:
        """Bytes per second and GPU for a group of neighbouring ranks."""
        return self.gpu.nvlink if ranks <= self.gpus_per_node else self.gpu.network


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of one step and what they are spent on; `idle` is the pipeline's."""

    compute: Compute
    communication: float
    idle: float
    optimizer: float
    tokens: int
    model_flops: float
    executed_flops: float
    gpus: int
    peak_flops: float

    @property
    def seconds(self) -> float:
        return self.compute.total + self.communication + self.idle + self.optimizer

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs (three forwards) per second as a share of all GPUs' peak."""
        return self.model_flops / self.seconds / (self.gpus * self.peak_flops)


def estimate_speed(job: Job, placement: Placement, machine: Machine) -> Speed:
    """Estimate the time of a step. Data-parallel replicas are taken to be balanced."""
    executed = flops.executed_flops(*job.pair, recomputed(job, placement))
    pairs = -(-job.pairs // placement.dp)
    # Of one pair on one pipeline stage; the stages work at the same time.
    compute = compute_seconds(job, placement, machine.rates)
    sent = job.stage_layers(placement) * layer_communication(job, placement, machine)
    sent += copy_seconds(job, placement, machine)
    gradients, optimizer = _optimizer_seconds(job, placement, machine)
    return Speed(
        compute=compute.times(pairs),
        communication=pairs * sent + gradients,
        idle=(placement.pp - 1) * (compute.total + sent),
        optimizer=optimizer,
        tokens=job.pairs * job.tokens,
        model_flops=job.pairs * flops.training_flops(*job.pair),
        executed_flops=job.pairs * executed,
        gpus=placement.gpus,
        peak_flops=machine.gpu.peak_flops,
    )


def branch_traffic(
    rows: int, heads: int, kv_heads: int, head_size: int, ranks: int, number_bytes: int = 2, lse_bytes: int = 4
) -> tuple[float, float]:
    """Count the bytes that one rank sends for branch attention in one layer, forward and backward.

    N = `rows` branch rows lie over W = `ranks`; r = (W − 1) · N / W of them come from or go to other ranks:

        forward   r · (2(A + K) · b + lse · heads)    Q, K, V to all; the result and its log-sum-exp home
        backward  r · (4(A + K) · b + lse · heads)    Q, K, V, the result, its gradient and lse to all; dQ, dK, dV home

    The log-sum-exp is fp32, `lse_bytes` per head; estimates leave it out with 0, it is below 1 %.
    """
    foreign = (ranks - 1) * rows / ranks
    tensors, lse = 2 * (heads + kv_heads) * head_size * number_bytes, lse_bytes * heads
    return foreign * (tensors + lse), foreign * (2 * tensors + lse)


def layer_communication(job: Job, placement: Placement, machine: Machine) -> float:
    """Return the seconds per layer and pair that nothing hides, both directions; see the table above."""
    shape, size, tp, cp = job.shape, job.number_bytes, placement.tp, placement.cp
    again = placement.recomputed_layers(job.stage_layers(placement)) / job.stage_layers(placement)
    tensor = job.rows_per_gpu(placement) * shape.hidden * size * (tp - 1) / tp
    tensor_seconds = (10 + 4 * again) * tensor / machine.link(tp)

    link = machine.link(tp * cp)
    kv_rows = job.rows_per_gpu(placement) - job.branch_rows / cp
    ring = 2 * shape.kv_size * kv_rows * size * (cp - 1) / tp / link
    if job.layout == "concatenated":
        sequences = sum(2 * flops.causal_flops(shape, trunk + max(answers)) for trunk, *answers in job.lengths.trees)
    else:
        sequences = sum(flops.causal_flops(shape, trunk) for trunk, *_ in job.lengths.trees)
    attention, rates = sequences / shape.layers / (cp * tp), machine.rates
    # The backward sends gradients too.
    ring_seconds = (1 + again) * max(0.0, ring - attention / rates.trunk_forward)
    ring_seconds += max(0.0, 2 * ring - ATTENTION_BACKWARD * attention / rates.trunk_backward)

    sent = branch_traffic(job.branch_rows, shape.heads, shape.kv_heads, shape.head_size, cp, size, lse_bytes=0)
    forward, backward = (number / tp / link for number in sent)
    return tensor_seconds + ring_seconds + (1 + again) * forward + backward


def copy_seconds(job: Job, placement: Placement, machine: Machine) -> float:
    """Return the seconds per pair that copies of layers' inputs to host memory and back take longer than a layer.

    A layer's input leaves while its layer runs forward, and comes back while the layer behind runs again and backward.
    """
    if not placement.offload_layer_inputs:
        return 0.0
    layers = job.stage_layers(placement)
    whole = compute_seconds(job, placement, machine.rates)
    forward = forward_seconds(job, placement, machine.rates).total / layers
    backward = (whole.total - whole.logprobs) / layers - forward
    copy = job.rows_per_gpu(placement) * job.shape.hidden * job.number_bytes / placement.tp / machine.rates.host_link
    return placement.recomputed_layers(layers) * (max(0.0, copy - forward) + max(0.0, copy - backward))


def _optimizer_seconds(job: Job, placement: Placement, machine: Machine) -> tuple[float, float]:
    """Return seconds once per step, for P parameters on this GPU and W = dp · cp ranks: exchange, and Adam.

    Gradients are reduce-scattered and weights gathered: (gradient + weight) · P · (W−1)/W bytes. Adam moves `ADAM`
    bytes for each of this GPU's share, P / W, in its memory or in the host's; to there, gradients come down and weights
    go up.
    """
    ranks = placement.dp * placement.cp
    parameters = parameters_per_gpu(job, placement, "only" if placement.pp == 1 else "first")
    moved = (4 if placement.grad_reduce_in_fp32 else job.number_bytes) + job.number_bytes
    exchange = moved * parameters * (ranks - 1) / ranks / machine.link(placement.tp * ranks)
    if placement.offload_optimizer:
        return exchange, parameters / ranks * (moved / machine.rates.host_link + ADAM / HOST_OPTIMIZER)
    return exchange, parameters / ranks * ADAM / machine.rates.element_wise
