"""Memory of one GPU, part by part, at the worst moment of a step.

Letters in the formulas: h hidden, A query columns (heads · head size), K key columns (kv heads · head size), f
feed-forward width, V vocabulary, R rows of a pair on this context-parallel rank, N branch rows of all ranks, L layers
of this pipeline stage, b bytes of an activation. Everything below is in bytes.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from nemo_longpo.costs.devices import GIB

from .activations import attention_moment, feed_forward_moment, kept_activations, per_gpu
from .job import Job, Setup

Stage = Literal["only", "first", "last"]

LIBRARIES = 1.0 * GIB
"""CUDA context, cuBLAS and attention workspaces; an estimate."""

PER_GROUP = 0.25 * GIB
"""NCCL's buffers of one process group; an estimate, it grows with channels and protocols."""


@dataclass(frozen=True)
class Memory:
    """Bytes by part. `layer` and `logprobs` are transient and never alive together, so the larger of them counts."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    layer: float
    logprobs: float
    inputs: float
    communication: float
    host: float = 0.0

    @property
    def tensors(self) -> float:
        """What torch's allocator holds at the worst moment."""
        lasting = self.weights + self.gradients + self.optimizer + self.activations + self.inputs
        return lasting + max(self.layer, self.logprobs)

    @property
    def total(self) -> float:
        return self.tensors + self.communication

    def as_dict(self) -> dict[str, float]:
        return asdict(self) | {"total": self.total}


def estimate_memory(job: Job, setup: Setup) -> Memory:
    """The pipeline stage that needs most; the stages in between never do."""
    stages: tuple[Stage, ...] = ("only",) if setup.pp == 1 else ("first", "last")
    return max((_stage_memory(job, setup, stage) for stage in stages), key=lambda memory: memory.total)


def _stage_memory(job: Job, setup: Setup, stage: Stage) -> Memory:
    parameters = parameters_per_gpu(job, setup, stage)
    return Memory(
        weights=setup.precision.weight * parameters,
        gradients=setup.precision.gradient * parameters,
        optimizer=0.0 if setup.offload_optimizer else optimizer_bytes(setup, parameters),
        activations=kept_activations(job, setup) * in_flight(job, setup, stage),
        layer=max(feed_forward_moment(job, setup), attention_moment(job, setup)),
        logprobs=0.0 if stage == "first" else logprob_moment(job, setup),
        inputs=input_bytes(job, setup),
        communication=communication_bytes(job, setup),
        host=optimizer_bytes(setup, parameters) if setup.offload_optimizer else 0.0,
    )


def parameters_per_gpu(job: Job, setup: Setup, stage: Stage) -> float:
    """L · (matrices / tp + norms) + tables / tp; a tied table lies on the first and on the last stage."""
    shape = job.shape
    tables = {"only": 1 if shape.tied else 2, "first": 1, "last": 1}[stage]
    layers = setup.stage_layers(shape) * (shape.layer_matrices / setup.tp + shape.layer_vectors)
    return layers + tables * shape.table / setup.tp + shape.hidden


def optimizer_bytes(setup: Setup, parameters: float) -> float:
    """(master + moments) · parameters, over the ranks that share the weights: dp · cp."""
    ranks = setup.dp * setup.cp if setup.distributed else 1
    return (setup.precision.master + setup.precision.moments) * parameters / ranks


def in_flight(job: Job, setup: Setup, stage: Stage) -> int:
    """Pairs whose activations a stage holds under the 1F1B schedule: as many as there are stages on the first one."""
    return min(setup.pp, -(-job.pairs // setup.dp)) if stage == "first" else 1


def logprob_moment(job: Job, setup: Setup) -> float:
    """Backward of the output layer: (1 / tp + 2) · R · h · b + the chunks' budget + V / tp · h · (4 + b).

    The final norm's input, its output and that one's gradient, both whole on every tensor-parallel rank; the weight's
    gradient summed in fp32 and, unless that is its type, rounded.
    """
    shape, size = job.shape, setup.precision.activation
    states = (1 / setup.tp + 2) * setup.rows(job) * shape.hidden * size
    gradient = shape.table / setup.tp * (4 if size == 4 else 4 + size)
    return states + setup.logprob_buffer + gradient


def input_bytes(job: Job, setup: Setup) -> float:
    """Per row three integers of 8 bytes, four numbers of 4, and the rotary angles, fp32 of one head size."""
    return setup.rows(job) * (3 * 8 + 4 * 4 + 4 * job.shape.head_size)


def communication_bytes(job: Job, setup: Setup) -> float:
    """Libraries, buffers of every process group with more than one rank, 2 · R · h · b / tp between pipeline stages."""
    groups = sum(size > 1 for size in (setup.tp, setup.pp, setup.cp, setup.dp, setup.dp * setup.cp))
    exchanged = 2 * per_gpu(job, setup, job.shape.hidden) if setup.pp > 1 else 0.0
    return LIBRARIES + groups * PER_GROUP + exchanged
