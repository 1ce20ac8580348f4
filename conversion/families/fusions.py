"""How Hugging Face tensors combine into one Megatron tensor and back: pure functions of shapes, no files.

Shape letters: H hidden size, F feed-forward size, N query heads, G key/value heads (query groups), D head size,
V vocabulary rows, L layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch


@dataclass(frozen=True)
class Geometry:
    """The sizes that every tensor's shape follows from."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    groups: int
    head_size: int
    vocabulary: int
    tied: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Geometry":
        """Read the sizes from a Hugging Face `config.json` in which the family's defaults are filled in.

        `num_key_value_heads` and `head_dim` may be absent or null (one for each head; hidden / heads), and
        `tie_word_embeddings` defaults to true in `transformers` itself but to false in the families here.
        """
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            feed_forward=config["intermediate_size"],
            heads=heads,
            groups=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
        )

    @property
    def axes(self) -> dict[str, int]:
        """Lengths of a tensor's axes, by the names that the tables use."""
        return {
            "hidden": self.hidden,
            "feed_forward": self.feed_forward,
            "vocabulary": self.vocabulary,
            "query": self.heads * self.head_size,
            "key_value": self.groups * self.head_size,
        }


class Fusion(Enum):
    """How the parts named on the Hugging Face side sit in the Megatron tensor."""

    SAME = "one part, unchanged"
    ROWS = "parts one below the other"
    QKV = "query, key, value, interleaved by query group"


def join(fusion: Fusion, parts: Sequence[torch.Tensor], geometry: Geometry) -> torch.Tensor:
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
    by_group = [part.reshape(geometry.groups, -1, *part.shape[1:]) for part in parts]
    return torch.cat(by_group, dim=1).reshape(-1, *parts[0].shape[1:])


def split(fusion: Fusion, tensor: torch.Tensor, rows: Sequence[int], geometry: Geometry) -> list[torch.Tensor]:
    """Megatron tensor → Hugging Face parts of the given row counts; the inverse of `join`."""
    if fusion is Fusion.SAME:
        return [tensor]
    if fusion is Fusion.ROWS:
        return [part.contiguous() for part in torch.split(tensor, list(rows), dim=0)]
    by_group = tensor.reshape(geometry.groups, -1, *tensor.shape[1:])
    parts = torch.split(by_group, [count // geometry.groups for count in rows], dim=1)
    return [part.reshape(-1, *tensor.shape[1:]).contiguous() for part in parts]
