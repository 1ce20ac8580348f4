"""Exact causal attention under context parallelism from torch's functions: gather K and V, attend chunk by chunk.

The CPU backend trains with it, and it is the reference for faster kernels.

Shape legend: S local rows (two zigzag chunks of c rows when the group has more than one rank), B batch, H query heads,
K key/value heads, D head size; Megatron's "sbhd" order.
"""

import torch
import torch.nn.functional as F

from nemo_longpo.parallel.collectives import Group, gather_rows_and_their_gradients, place


def _in_sequence_order(gathered: torch.Tensor, cp_size: int) -> torch.Tensor:
    """Undo the zigzag: rank r's two chunks go to places r and 2·cp − 1 − r of the sequence."""
    chunks = gathered.chunk(2 * cp_size)
    return torch.cat([*chunks[0::2], *reversed(chunks[1::2])])


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Return causal attention of the last `len(query)` positions over all keys; sbhd in, sbhd out."""
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    rows, columns = query.shape[0], key.shape[0]
    # torch's is_causal aligns a rectangle at the top left; ours ends at the bottom right.
    mask = None if rows == columns else torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows).to(q.device)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True)
    return out.permute(2, 0, 1, 3)


def causal_attention(
    query_SBHD: torch.Tensor,
    key_SBKD: torch.Tensor,
    value_SBKD: torch.Tensor,
    group: Group = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Return causal softmax attention, [S, B, H, D], of a sequence whose rows are zigzag-split over `group`.

    Result and gradients equal those of full causal attention over the gathered sequence. `scale` defaults to 1/√D.
    """
    cp_rank, cp_size = place(group)
    if cp_size == 1:
        return _attend(query_SBHD, key_SBKD, value_SBKD, scale)
    gathered = (gather_rows_and_their_gradients(rows, group) for rows in (key_SBKD, value_SBKD))
    key, value = (_in_sequence_order(rows, cp_size) for rows in gathered)
    early, late = query_SBHD.chunk(2)
    chunk = early.shape[0]
    outputs = [
        _attend(rows, key[: (place + 1) * chunk], value[: (place + 1) * chunk], scale)
        for rows, place in ((early, cp_rank), (late, 2 * cp_size - 1 - cp_rank))
    ]
    return torch.cat(outputs)
