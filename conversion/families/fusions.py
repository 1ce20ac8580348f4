"""How Hugging Face tensors combine into one Megatron tensor and back: pure functions of shapes, no files.

Shape letters: H hidden size, N query heads, G key/value heads (Megatron's query groups), D head size.
"""

from collections.abc import Sequence
from enum import Enum

import torch


class Fusion(Enum):
    """How the parts named on the Hugging Face side sit in the Megatron tensor."""

    SAME = "one part, unchanged"
    ROWS = "parts one below the other"
    QKV = "query, key, value, interleaved by query group"


def join(fusion: Fusion, parts: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
    """Hugging Face parts → Megatron tensor.

    QKV: Megatron cuts the projection by query group, so that tensor parallelism takes whole groups: group g holds its
    N/G query heads, then its key head, then its value head, each D rows. Works for weights `[rows, H]` and biases
    `[rows]`.
    """
    if fusion is Fusion.SAME:
        (part,) = parts
        return part
    if fusion is Fusion.ROWS:
        return torch.cat(list(parts), dim=0)
    by_group = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
    return torch.cat(by_group, dim=1).reshape(-1, *parts[0].shape[1:])


def split(fusion: Fusion, tensor: torch.Tensor, rows: Sequence[int], groups: int) -> list[torch.Tensor]:
    """Megatron tensor → Hugging Face parts of the given row counts; the inverse of `join`."""
    if fusion is Fusion.SAME:
        return [tensor]
    if fusion is Fusion.ROWS:
        return [part.contiguous() for part in torch.split(tensor, list(rows), dim=0)]
    by_group = tensor.reshape(groups, -1, *tensor.shape[1:])
    parts = torch.split(by_group, [count // groups for count in rows], dim=1)
    return [part.reshape(-1, *tensor.shape[1:]).contiguous() for part in parts]
