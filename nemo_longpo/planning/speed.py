"""Time of an optimizer step: arithmetic at a stated utilisation, communication that nothing hides, the pipeline's idle
share.

What is sent, per layer and pair (letters as in memory.py, W ranks of a group, each sends (W − 1) / W of a whole):

| who             | forward                        | backward                       | hidden behind  |
|-----------------|--------------------------------|--------------------------------|----------------|
| tensor parallel | 4 · R · h · b · (W−1)/W        | 6 · R · h · b · (W−1)/W        | nothing        |
| trunk's ring    | 2K · R · b · (W−1)/tp          | 4K · R · b · (W−1)/tp          | its attention  |
| branches        | (2A+2K) · N · b · (W−1)/W/tp   | (4A+4K) · N · b · (W−1)/W/tp   | nothing        |

Once per step: gradients to their owners and weights back, over dp · cp ranks. Recomputed layers send their forward
twice.
"""

from dataclasses import dataclass

from nemo_longpo.costs.devices import Gpu
from nemo_longpo.costs.flops import causal_flops, executed_flops, layers_flops, linear_flops, training_flops

from .job import Job, Setup
from .memory import parameters_per_gpu

HOST_LINK = 25e9
"""Bytes per second between GPU and CPU, one direction (PCIe 4)."""

HOST_OPTIMIZER = 20e9
"""Bytes per second of memory traffic that the CPU's Adam reaches per GPU of a node; it moves 28 per parameter."""


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind in equal nodes. `utilisation`: the share of their peak that they reach while they compute."""

    gpu: Gpu
    gpus: int = 8
    gpus_per_node: int = 8
    utilisation: float = 0.4

    def link(self, ranks: int) -> float:
        """Bytes per second and GPU for a group of neighbouring ranks."""
        return self.gpu.nvlink if ranks <= self.gpus_per_node else self.gpu.network


@dataclass(frozen=True)
class Speed:
    """Seconds of one step and what they are spent on; `idle` is the pipeline's."""

    compute: float
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
        return self.compute + self.communication + self.idle + self.optimizer

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs (three forwards) per second as a share of all GPUs' peak."""
        return self.model_flops / self.seconds / (self.gpus * self.peak_flops)


def estimate_speed(job: Job, setup: Setup, machine: Machine) -> Speed:
    """Expected time of a step. Data-parallel replicas are taken to be balanced."""
    lengths = job.trunk, job.chosen, job.rejected
    executed = executed_flops(job.shape, *lengths, job.layout, recomputed_share(job, setup))
    pairs = -(-job.pairs // setup.dp)
    # Of one pair on one pipeline stage; the stages work at the same time.
    compute = executed / (setup.tp * setup.cp * setup.pp) / (machine.gpu.peak_flops * machine.utilisation)
    sent = setup.stage_layers(job.shape) * layer_communication(job, setup, machine)
    idle = (setup.pp - 1) * (compute + sent)
    return Speed(
        compute=pairs * compute,
        communication=pairs * sent + gradient_seconds(job, setup, machine),
        idle=idle,
        optimizer=offload_seconds(job, setup) if setup.offload_optimizer else 0.0,
        tokens=job.pairs * job.tokens,
        model_flops=job.pairs * training_flops(job.shape, *lengths, job.layout),
        executed_flops=job.pairs * executed,
        gpus=setup.gpus,
        peak_flops=machine.gpu.peak_flops,
    )


def recomputed_share(job: Job, setup: Setup) -> float:
    """Share of the layers' forward that runs a second time, by FLOPs."""
    shape = job.shape
    layers = setup.stage_layers(shape)
    if setup.recompute == "full":
        return (setup.recompute_layers or layers) / layers
    whole = layers_flops(shape, job.trunk, job.chosen, job.rejected, job.layout)
    linear = linear_flops(shape, job.rows)
    if setup.recompute == "core_attn":
        return (whole - linear) / whole
    if setup.recompute == "mlp":
        return linear * 3 * shape.hidden * shape.ffn / shape.layer_matrices / whole
    return 0.0


def layer_communication(job: Job, setup: Setup, machine: Machine) -> float:
    """Seconds per layer and pair that nothing hides, both directions; see the table above."""
    shape, size = job.shape, setup.precision.activation
    again = recomputed_share(job, setup) if setup.recompute == "full" else 0.0
    tensor = setup.rows(job) * shape.hidden * size * (setup.tp - 1) / setup.tp
    tensor_seconds = (10 + 4 * again) * tensor / machine.link(setup.tp)

    link = machine.link(setup.tp * setup.cp)
    kv_rows = setup.rows(job) - job.branch_rows / setup.cp
    ring = 2 * shape.kv_size * kv_rows * size * (setup.cp - 1) / setup.tp / link
    attention = trunk_attention_seconds(job, setup, machine)
    # The backward sends gradients too, and computes 2.5 times as much: it forms the scores anew.
    ring_seconds = (1 + again) * max(0.0, ring - attention) + max(0.0, 2 * ring - 2.5 * attention)

    share = job.branch_rows * size * (setup.cp - 1) / setup.cp / setup.tp / link
    forward = (2 * shape.query_size + 2 * shape.kv_size) * share
    backward = (4 * shape.query_size + 4 * shape.kv_size) * share
    return tensor_seconds + ring_seconds + (1 + again) * forward + backward


def trunk_attention_seconds(job: Job, setup: Setup, machine: Machine) -> float:
    """Forward of one layer's causal attention on one GPU."""
    if job.layout == "concatenated":
        sequences = 2 * causal_flops(job.shape, job.rows / 2)
    else:
        sequences = causal_flops(job.shape, job.trunk)
    per_gpu = sequences / job.shape.layers / (setup.cp * setup.tp)
    return per_gpu / (machine.gpu.peak_flops * machine.utilisation)


def gradient_seconds(job: Job, setup: Setup, machine: Machine) -> float:
    """Reduce-scatter of gradients and all-gather of weights over dp · cp ranks: (gradient + weight) · P · (W−1)/W."""
    ranks = setup.dp * setup.cp
    if ranks == 1:
        return 0.0
    parameters = parameters_per_gpu(job, setup, "only" if setup.pp == 1 else "first")
    moved = (setup.precision.gradient + setup.precision.weight) * parameters * (ranks - 1) / ranks
    return moved / machine.link(setup.tp * ranks)


def offload_seconds(job: Job, setup: Setup) -> float:
    """Adam on the CPU for this GPU's share: gradients down, weights up, 28 bytes of memory traffic per parameter."""
    share = parameters_per_gpu(job, setup, "only" if setup.pp == 1 else "first") / (setup.dp * setup.cp)
    return share * ((setup.precision.gradient + setup.precision.weight) / HOST_LINK + 28 / HOST_OPTIMIZER)
