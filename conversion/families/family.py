"""The terms of the name tables, which map tensors in both directions.

A table's keys are those of Megatron's distributed checkpoints. Transformer-Engine modules fuse the layer norms into the
projections and so write these names directly; the local modules map theirs to the same names
(`sharded_state_dict_keys_map` in Megatron-Core's layer specs), so one checkpoint serves both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from nemo_longpo.costs.model_shape import ModelShape

from .fusions import Fusion, join, split


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor and its Hugging Face parts.

    `parts` maps each Hugging Face name to its shape, in the names of `ModelShape`. Names with `{layer}` repeat per
    layer; Megatron stacks those along a leading axis of size L.
    """

    key: str
    parts: Mapping[str, tuple[str, ...]]
    fusion: Fusion = Fusion.SAME
    untied_only: bool = False

    @property
    def stacked(self) -> bool:
        return all("{layer}" in name for name in self.parts)

    @property
    def is_vocabulary(self) -> bool:
        return all(shape[0] == "vocab" for shape in self.parts.values())


@dataclass(frozen=True)
class Piece:
    """One layer's share of a Megatron tensor (`layer` None: the tensor is in no layer).

    Everything is read, compared and written in these pieces, one at a time.
    """

    entry: Entry
    layer: int | None
    model_shape: ModelShape

    @property
    def names(self) -> list[str]:
        """The Hugging Face names of its parts."""
        return [name.format(layer=self.layer) for name in self.entry.parts]

    @property
    def part_shapes(self) -> list[tuple[int, ...]]:
        return [tuple(getattr(self.model_shape, axis) for axis in shape) for shape in self.entry.parts.values()]

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the axis of layers."""
        shapes = self.part_shapes
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Of the whole Megatron tensor."""
        return self.shape if self.layer is None else (self.model_shape.layers, *self.shape)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where this piece starts in the whole tensor."""
        zeros = (0,) * len(self.shape)
        return zeros if self.layer is None else (self.layer, *zeros)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its extent in the whole tensor."""
        return self.shape if self.layer is None else (1, *self.shape)

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Hugging Face parts, in the order of `names`, → Megatron tensor."""
        return join(self.entry.fusion, parts, self.model_shape.kv_heads)

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Megatron tensor → Hugging Face parts."""
        return split(self.entry.fusion, tensor, [shape[0] for shape in self.part_shapes], self.model_shape.kv_heads)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: how Hugging Face and NeMo call it, and its name table.

    NeMo's classes lie in `nemo.collections.llm.gpt.model.{nemo_module}`; `nemo_llama3_config` is the configuration
    that has Llama 3's RoPE scaling, where NeMo has one; `nemo_positions` are the fields with the number of positions.
    """

    model_type: str
    architecture: str
    entries: tuple[Entry, ...]
    nemo_module: str
    nemo_model: str
    nemo_config: str
    nemo_llama3_config: str | None = None
    nemo_positions: tuple[str, ...] = ("seq_length",)

    @property
    def qk_norm(self) -> bool:
        return any(entry.key.endswith("q_layernorm.weight") for entry in self.entries)

    def copies(self, model_shape: ModelShape) -> dict[str, str]:
        """Names that a file may hold besides the one they are tied to."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if model_shape.tied else {}

    def first_pieces(self, model_shape: ModelShape) -> list[Piece]:
        """One piece of every Megatron tensor, however many layers there are: that of the first layer."""
        used = (entry for entry in self.entries if not (entry.untied_only and model_shape.tied))
        return [Piece(entry, 0 if entry.stacked else None, model_shape) for entry in used]

    def pieces(self, model_shape: ModelShape) -> Iterator[Piece]:
        """Every tensor of a model, layer by layer."""
        first = self.first_pieces(model_shape)
        yield from (piece for piece in first if piece.layer is None)
        for layer in range(model_shape.layers):
            yield from (Piece(piece.entry, layer, model_shape) for piece in first if piece.layer is not None)
