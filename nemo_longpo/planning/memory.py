"""Memory of one GPU, part by part, at the worst moment of a step.

Letters in the formulas: h hidden, A query columns (heads · head size), K key columns (kv heads · head size), f
feed-forward width, V vocabulary, R rows of a pair on this context-parallel rank, N branch rows of all ranks, L layers
of this pipeline stage, b bytes of an activation. Everything below is in bytes. With sequence parallelism every
activation of a layer is split over tensor-parallel ranks, by rows or by columns; what is gathered is named.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from .gpus import GIB
from .job import Job, Setup

Stage = Literal["only", "first", "last"]

LIBRARIES = 1.0 * GIB
"""CUDA context, cuBLAS and attention workspaces; an estimate."""

PER_GROUP = 0.25 * GIB
"""NCCL's buffers of one process group; an estimate, it grows with channels and protocols."""

GATE = 5
"""Times f that a gated feed-forward part keeps as NeMo's Mistral and Qwen2.5 run it: both halves, the gate's value, the
other half plus Megatron's offset, their product. With `bias_activation_fusion` it would be 3."""


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


def layer_widths(job: Job, setup: Setup) -> dict[str, float]:
    """Numbers per row that a layer's backward needs, by the part that keeps them; before the division by tp.

    Attention keeps its norm's input and output (2h), the projection that the values are a view of (A + 2K), rotated
    queries and keys (A + K) and its result (A); its core keeps the results of trunk and branches before they are joined
    (A), and the keys and values that came by last in Transformer Engine's ring (2K). The feed-forward part keeps its
    norm's input and output (2h) and what the gate needs (`GATE` · f). A plain norm keeps the normalised rows too (h).
    """
    shape = job.shape
    norm = shape.hidden if setup.fused_norms else 2 * shape.hidden
    apart = shape.query_size if job.branch_rows else 0
    ring = 2 * shape.kv_size if setup.cp > 1 else 0
    # Transformer Engine's second norm is part of the feed-forward module, which recomputes it.
    before, inside = (0, norm) if setup.fused_norms else (norm, 0)
    return {
        "input": shape.hidden,
        "attention": norm + 3 * shape.query_size + 3 * shape.kv_size,
        "core": apart + ring,
        "between": shape.hidden + before,
        "feed_forward": inside + GATE * shape.ffn,
    }


def kept_activations(job: Job, setup: Setup) -> float:
    """Σ over layers of kept width · R · b / tp for one pair: all of `layer_widths`, or what recompute leaves of it."""
    widths = layer_widths(job, setup)
    everything = sum(widths.values())
    layers = setup.stage_layers(job.shape)
    if setup.recompute == "full":
        again = setup.recompute_layers or layers
        kept = again * widths["input"] + (layers - again) * everything
    elif setup.recompute == "mlp":
        kept = layers * (everything - widths["feed_forward"])
    elif setup.recompute == "core_attn":
        kept = layers * (everything - widths["core"])
    else:
        kept = layers * everything
    return _per_gpu(job, setup, kept)


def in_flight(job: Job, setup: Setup, stage: Stage) -> int:
    """Pairs whose activations a stage holds under the 1F1B schedule: as many as there are stages on the first one."""
    return min(setup.pp, -(-job.pairs // setup.dp)) if stage == "first" else 1


def feed_forward_moment(job: Job, setup: Setup) -> float:
    """Backward of the feed-forward part: what was recomputed, and gradients while they are needed.

    Recomputed width · R · b / tp, then R · b / tp times h + max(2f at the gate, f + gathers): with sequence
    parallelism the gradient behind fc2 (h · tp), then fc1's input and its gradient (2h · tp) are whole.
    """
    shape, widths = job.shape, layer_widths(job, setup)
    whole = sum(widths.values()) if _recomputes_last_layer(job, setup) else 0
    recomputed = widths["feed_forward"] if setup.recompute == "mlp" else whole
    gathered = 2 * shape.hidden * (setup.tp if setup.tp > 1 else 0.5)
    return _per_gpu(job, setup, recomputed + shape.hidden + max(2 * shape.ffn, shape.ffn + gathered))


def attention_moment(job: Job, setup: Setup) -> float:
    """Attention of one layer, forward or backward, with what was recomputed before it; the ring and the branches."""
    widths = layer_widths(job, setup)
    before = widths["input"] + widths["attention"] if _recomputes_last_layer(job, setup) else 0
    return _per_gpu(job, setup, before) + max(ring_bytes(job, setup), branch_bytes(job, setup))


def ring_bytes(job: Job, setup: Setup) -> float:
    """Transformer Engine's ring forward holds every step's keys, values and partial result: cp · R · (A + 2K) · b / tp.

    Transformer Engine 2.9, attention/dot_product_attention/context_parallel.py: `p2p_comm_buffers`, `out_per_step`.
    """
    if setup.cp == 1:
        return 0.0
    trunk_rows = setup.rows(job) - job.branch_rows / setup.cp
    width = job.shape.query_size + 2 * job.shape.kv_size
    return setup.cp * trunk_rows * width * setup.precision.activation / setup.tp


def branch_bytes(job: Job, setup: Setup) -> float:
    """Backward of branch attention: N rows of q, k, v, out and their gradient gathered, gradients added up in fp32.

    N · ((3A + 2K) · b + (A + 2K) · (4 + 2b)) / tp, and the gradients of this rank's trunk keys and values, 2K · R · b
    / tp.
    """
    shape, size = job.shape, setup.precision.activation
    gathered = (3 * shape.query_size + 2 * shape.kv_size) * size
    summed = (shape.query_size + 2 * shape.kv_size) * (4 + 2 * size)
    trunk = _per_gpu(job, setup, 2 * shape.kv_size) if job.branch_rows else 0.0
    return job.branch_rows * (gathered + summed) / setup.tp + trunk


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
    exchanged = 2 * _per_gpu(job, setup, job.shape.hidden) if setup.pp > 1 else 0.0
    return LIBRARIES + groups * PER_GROUP + exchanged


def _recomputes_last_layer(job: Job, setup: Setup) -> bool:
    """Where some layers are kept, they come last and are gone when the first recomputed one is needed."""
    return setup.recompute == "full" and setup.recompute_layers in (0, setup.stage_layers(job.shape))


def _per_gpu(job: Job, setup: Setup, width: float) -> float:
    """Bytes of `width` numbers per row, split over tensor-parallel ranks."""
    return setup.rows(job) * width * setup.precision.activation / setup.tp
