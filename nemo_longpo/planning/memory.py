"""Memory of one GPU, part by part, at the worst moment of a step.

Letters in the formulas: h hidden, A query columns (heads · head size), K key columns (kv heads · head size), f
feed-forward width, V vocabulary, R rows of a pair on this context-parallel rank, N branch rows of all ranks, L layers
of this pipeline stage, b bytes of an activation. Results are in bytes.

With sequence parallelism every activation of a layer is split over tensor-parallel ranks, by rows or by columns; the
formulas name what is gathered.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from nemo_longpo.costs.devices import GIB
from nemo_longpo.placement import Placement

from .job import Job

Stage = Literal["only", "first", "last"]

LIBRARIES = 1.0 * GIB
"""CUDA context, cuBLAS and attention workspaces; an estimate."""

PER_GROUP = 0.25 * GIB
"""NCCL's buffers of one process group; an estimate, it grows with channels and protocols."""

GATE = 5
"""Times f that a gated feed-forward part keeps as NeMo's Mistral and Qwen2.5 run it: both halves, the gate's value, the
other half plus Megatron's offset, their product. With `bias_activation_fusion` it would be 3."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by part. `layer` and `logprobs` are transient and never alive together, so the larger of them counts.

    `host` is what this GPU keeps in the memory of its node.
    """

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


def estimate_memory(job: Job, placement: Placement) -> Memory:
    """Estimate the memory of the pipeline stage that needs most; the stages in between never do.

    Gradients are summed in fp32, or in the type of the weights. The optimizer holds an fp32 copy of bf16 weights (4
    bytes) and Adam's two averages (8 bytes) per parameter, over the dp · cp ranks that share the weights. The first
    stage holds the activations of as many pairs as there are stages (1F1B schedule).
    """
    pairs = min(placement.pp, -(-job.pairs // placement.dp))
    size = job.number_bytes

    def stage_memory(stage: Stage) -> Memory:
        parameters = parameters_per_gpu(job, placement, stage)
        ranks = 1 if job.on_cpu else placement.dp * placement.cp
        optimizer = (8 if size == 4 else 12) * parameters / ranks
        alive = pairs if stage == "first" else 1
        return Memory(
            weights=size * parameters,
            gradients=(4 if placement.grad_reduce_in_fp32 else size) * parameters,
            optimizer=0.0 if placement.offload_optimizer else optimizer,
            activations=kept_activations(job, placement) * alive + returned_inputs(job, placement, stage),
            layer=max(feed_forward_moment(job, placement), attention_moment(job, placement)),
            logprobs=0.0 if stage == "first" else logprob_moment(job, placement),
            inputs=input_bytes(job, placement),
            communication=communication_bytes(job, placement),
            host=(optimizer if placement.offload_optimizer else 0.0) + offloaded_inputs(job, placement, stage) * alive,
        )

    stages: tuple[Stage, ...] = ("only",) if placement.pp == 1 else ("first", "last")
    return max(map(stage_memory, stages), key=lambda memory: memory.total)


def parameters_per_gpu(job: Job, placement: Placement, stage: Stage) -> float:
    """L · (matrices / tp + norms) + tables / tp; a tied table is on the first and on the last stage."""
    shape = job.shape
    tables = 2 if stage == "only" and not shape.tied else 1
    layers = job.stage_layers(placement) * (shape.layer_matrices / placement.tp + shape.layer_vectors)
    return layers + tables * shape.table / placement.tp + shape.hidden


def layer_widths(job: Job, placement: Placement) -> dict[str, float]:
    """Numbers per row that a layer's backward needs, by the part that keeps them; before the division by tp.

    `core_attn` and `mlp` are the parts that selective recompute can drop. Attention keeps its norm's input and output
    (2h), the projection that the values are a view of (A + 2K), rotated queries and keys (A + K) and its result (A).
    Its core keeps the results of trunk and branches before they are joined (A), and the last keys and values of
    Transformer Engine's ring (2K). The feed-forward part keeps its norm's input and output (2h) and what the gate needs
    (`GATE` · f). A plain norm keeps the normalised rows too (h). Norms of queries and keys keep what they read apart
    from the projection (A + K); plain ones, which read keys in place, also what they normalise (2A + K).
    """
    shape = job.shape
    norm = 2 * shape.hidden if job.on_cpu else shape.hidden
    heads = (2 if job.on_cpu else 1) * shape.query_size + shape.kv_size if shape.qk_norm else 0
    apart = shape.query_size if job.branch_rows else 0
    ring = 2 * shape.kv_size if placement.cp > 1 else 0
    # Transformer Engine's second norm is part of the feed-forward module, which recomputes it.
    before, inside = (norm, 0) if job.on_cpu else (0, norm)
    return {
        "input": shape.hidden,
        "attention": norm + 3 * shape.query_size + 3 * shape.kv_size + heads,
        "core_attn": apart + ring,
        "between": shape.hidden + before,
        "mlp": inside + GATE * shape.ffn,
    }


def kept_activations(job: Job, placement: Placement) -> float:
    """Σ over layers of kept width · R · b / tp for one pair: all of `layer_widths`, or what recompute leaves of it.

    A feed-forward part in tiles keeps nothing but its input, as if it were recomputed. Inputs in host memory do not
    count.
    """
    widths = layer_widths(job, placement)
    layers = job.stage_layers(placement)
    again = placement.recomputed_layers(layers)
    dropped = {*placement.recomputed_parts, *(("mlp",) if placement.mlp_tile_tokens else ())}
    kept = sum(width for part, width in widths.items() if part not in dropped)
    inputs = 0 if placement.offload_layer_inputs else again * widths["input"]
    return _per_gpu(job, placement, inputs + (layers - again) * kept)


def offloaded_inputs(job: Job, placement: Placement, stage: Stage) -> float:
    """Inputs of recomputed layers in host memory, h · R · b / tp each, for one pair. Those that a later stage receives
    stay on the GPU, since the schedule holds them there."""
    if not placement.offload_layer_inputs:
        return 0.0
    layers = placement.recomputed_layers(job.stage_layers(placement)) - (stage == "last")
    return _per_gpu(job, placement, layers * job.shape.hidden)


def returned_inputs(job: Job, placement: Placement, stage: Stage) -> float:
    """Of inputs in host memory, two are on the GPU during the backward: one is used, the next one comes. Of a later
    stage, also the one that it received."""
    if not placement.offload_layer_inputs:
        return 0.0
    layers = placement.recomputed_layers(job.stage_layers(placement))
    return _per_gpu(job, placement, min(layers, 2 + (stage == "last")) * job.shape.hidden)


def feed_forward_moment(job: Job, placement: Placement) -> float:
    """Backward of the feed-forward part: what was recomputed, and gradients while they are needed.

    Recomputed width · R · b / tp, then R · b / tp times h + max(2f at the gate, f + gathers): with sequence
    parallelism the gradient behind fc2 (h · tp), then fc1's input and its gradient (2h · tp) are whole.

    In tiles, all of the feed-forward part is of one tile's rows. All rows have the gradients behind and before it (2h).
    """
    shape, widths, tile = job.shape, layer_widths(job, placement), placement.mlp_tile_tokens
    whole = sum(widths.values()) if _recomputes_last_layer(job, placement) else 0
    gathered = 2 * shape.hidden * (placement.tp if placement.tp > 1 else 0.5)
    gradients = shape.hidden + max(2 * shape.ffn, shape.ffn + gathered)
    if tile is not None:
        of_tile = min(tile, job.rows_per_gpu(placement)) * job.number_bytes / placement.tp
        rest = max(0, whole - widths["mlp"]) + 2 * shape.hidden
        return _per_gpu(job, placement, rest) + of_tile * (widths["mlp"] + gradients)
    recomputed = widths["mlp"] if "mlp" in placement.recomputed_parts else whole
    return _per_gpu(job, placement, recomputed + gradients)


def attention_moment(job: Job, placement: Placement) -> float:
    """Attention of one layer, forward or backward, with what was recomputed before it; the ring and the branches."""
    widths = layer_widths(job, placement)
    before = widths["input"] + widths["attention"] if _recomputes_last_layer(job, placement) else 0
    longest = job.document_alone
    return _per_gpu(job, placement, before) + max(ring_bytes(longest, placement), branch_bytes(longest, placement))


def ring_bytes(job: Job, placement: Placement) -> float:
    """Transformer Engine's ring forward holds every step's keys, values and partial result: cp · R · (A + 2K) · b / tp.

    Transformer Engine 2.9, attention/dot_product_attention/context_parallel.py: `p2p_comm_buffers`, `out_per_step`.
    """
    if placement.cp == 1:
        return 0.0
    trunk_rows = job.rows_per_gpu(placement) - job.branch_rows / placement.cp
    width = job.shape.query_size + 2 * job.shape.kv_size
    return placement.cp * trunk_rows * width * job.number_bytes / placement.tp


def branch_bytes(job: Job, placement: Placement) -> float:
    """Backward of branch attention: N rows of q, k, v, out and their gradient gathered, gradients added up in fp32.

    N · ((3A + 2K) · b + (A + 2K) · (4 + 2b)) / tp, and the gradients of this rank's trunk keys and values, 2K · R · b
    / tp.
    """
    shape, size = job.shape, job.number_bytes
    gathered = (3 * shape.query_size + 2 * shape.kv_size) * size
    summed = (shape.query_size + 2 * shape.kv_size) * (4 + 2 * size)
    trunk = _per_gpu(job, placement, 2 * shape.kv_size) if job.branch_rows else 0.0
    return job.branch_rows * (gathered + summed) / placement.tp + trunk


def logprob_moment(job: Job, placement: Placement) -> float:
    """Backward of the output layer: (1 / tp + 2) · R · h · b + the chunks' budget.

    The final norm's input, its output and that one's gradient, both whole on every tensor-parallel rank. Where
    gradients are not summed in fp32, the weight's is first summed in fp32 and, unless that is its type, rounded:
    V / tp · h · (4 + b) more.
    """
    shape, size = job.shape, job.number_bytes
    states = (1 / placement.tp + 2) * job.rows_per_gpu(placement) * shape.hidden * size
    separate = not placement.grad_reduce_in_fp32
    gradient = shape.table / placement.tp * (4 if size == 4 else 4 + size) if separate else 0.0
    return states + job.logprob_memory_gb * 1e9 + gradient


def input_bytes(job: Job, placement: Placement) -> float:
    """Per row three integers of 8 bytes, four numbers of 4, and the rotary angles, fp32 of one head size."""
    return job.rows_per_gpu(placement) * (3 * 8 + 4 * 4 + 4 * job.shape.head_size)


def communication_bytes(job: Job, placement: Placement) -> float:
    """Libraries, buffers of every process group with more than one rank, 2 · R · h · b / tp between pipeline stages."""
    sizes = placement.tp, placement.pp, placement.cp, placement.dp, placement.dp * placement.cp
    exchanged = 2 * _per_gpu(job, placement, job.shape.hidden) if placement.pp > 1 else 0.0
    return LIBRARIES + sum(size > 1 for size in sizes) * PER_GROUP + exchanged


def _recomputes_last_layer(job: Job, placement: Placement) -> bool:
    """Where some layers are kept, they come last and are gone when the first recomputed one is needed."""
    layers = job.stage_layers(placement)
    return placement.recomputed_layers(layers) == layers


def _per_gpu(job: Job, placement: Placement, width: float) -> float:
    """Bytes of `width` numbers per row, split over tensor-parallel ranks."""
    return job.rows_per_gpu(placement) * width * job.number_bytes / placement.tp
