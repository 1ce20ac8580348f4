"""Activations of the layers on one GPU: what is kept for the backward, and what one layer takes while it runs.

Letters as in memory.py. With sequence parallelism every activation of a layer is split over tensor-parallel ranks, by
rows or by columns; what is gathered is named.
"""

from .job import Job, Setup

GATE = 5
"""Times f that a gated feed-forward part keeps as NeMo's Mistral and Qwen2.5 run it: both halves, the gate's value, the
other half plus Megatron's offset, their product. With `bias_activation_fusion` it would be 3."""


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
    return per_gpu(job, setup, kept)


def feed_forward_moment(job: Job, setup: Setup) -> float:
    """Backward of the feed-forward part: what was recomputed, and gradients while they are needed.

    Recomputed width · R · b / tp, then R · b / tp times h + max(2f at the gate, f + gathers): with sequence
    parallelism the gradient behind fc2 (h · tp), then fc1's input and its gradient (2h · tp) are whole.
    """
    shape, widths = job.shape, layer_widths(job, setup)
    whole = sum(widths.values()) if _recomputes_last_layer(job, setup) else 0
    recomputed = widths["feed_forward"] if setup.recompute == "mlp" else whole
    gathered = 2 * shape.hidden * (setup.tp if setup.tp > 1 else 0.5)
    return per_gpu(job, setup, recomputed + shape.hidden + max(2 * shape.ffn, shape.ffn + gathered))


def attention_moment(job: Job, setup: Setup) -> float:
    """Attention of one layer, forward or backward, with what was recomputed before it; the ring and the branches."""
    widths = layer_widths(job, setup)
    before = widths["input"] + widths["attention"] if _recomputes_last_layer(job, setup) else 0
    return per_gpu(job, setup, before) + max(ring_bytes(job, setup), branch_bytes(job, setup))


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
    trunk = per_gpu(job, setup, 2 * shape.kv_size) if job.branch_rows else 0.0
    return job.branch_rows * (gathered + summed) / setup.tp + trunk


def _recomputes_last_layer(job: Job, setup: Setup) -> bool:
    """Where some layers are kept, they come last and are gone when the first recomputed one is needed."""
    return setup.recompute == "full" and setup.recompute_layers in (0, setup.stage_layers(job.shape))


def per_gpu(job: Job, setup: Setup, width: float) -> float:
    """Bytes of `width` numbers per row, split over tensor-parallel ranks."""
    return setup.rows(job) * width * setup.precision.activation / setup.tp
