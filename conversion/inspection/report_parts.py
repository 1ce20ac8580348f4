"""What the descriptions of both sides have in common: advice, sizes, positions, and whether the weights are numbers."""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import DEFAULTS, ModelConfig

from ..families.family import Family, Piece
from ..huggingface.safetensors_file import TORCH_DTYPES
from ..huggingface.weights import HfWeights
from ..model_on_disk import ModelOnDisk
from ..progress import DEFAULT_WORKERS, work_through
from ..values import NotFinite

Result = TypeVar("Result")


class Advice(list[str]):
    def attempt(self, purpose: str, step: Callable[[], Result]) -> Result | None:
        """What `step` returns; None if the input does not allow it, which is then noted."""
        try:
            return step()
        except InputError as error:
            self.note(f"{purpose}: {error}")
            return None

    def note(self, line: str) -> None:
        """Once, even if several steps stumble over the same thing."""
        if line not in self:
            self.append(line)


def sizes(config: ModelConfig) -> dict[str, Any]:
    """Null where a model of an unknown kind does not say."""
    known = config.model_type in DEFAULTS
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.kv_heads,
        "head_size": config.head_size,
        "vocabulary": config.vocab_size,
        "tied": False if known and config.tie_word_embeddings is None else config.tie_word_embeddings,
    }


def positions(config: ModelConfig) -> dict[str, Any]:
    """`sliding_window` is one that hides something, where that can be told."""
    return {
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.theta,
        "rope_scaling": None if config.rope_type == "default" else config.rope_fields,
        "sliding_window": config.active_window if config.max_position_embeddings else config.sliding_window,
    }


def parameters(family: Family, model_shape: ModelShape) -> int:
    """Without the rows that pad a vocabulary, and tied embeddings once."""
    return sum(math.prod(piece.global_shape) for piece in family.first_pieces(model_shape))


Item = TypeVar("Item")


def look_at_huggingface(weights: HfWeights, advice: Advice) -> list[str]:
    """Names of the tensors with NaN or infinities, of the types that can hold them."""
    names = [name for name in weights if weights.dtype(name) in TORCH_DTYPES]
    return _look_at(names, lambda name: [(name, weights.read(name))], advice)


def look_at_nemo(checkpoint: ModelOnDisk, advice: Advice) -> list[str]:
    """The same of a checkpoint, under their Hugging Face names; rows that pad the vocabulary do not count."""

    def parts(piece: Piece) -> Iterable[tuple[str, torch.Tensor]]:
        return zip(piece.names, checkpoint.weights.parts(piece), strict=True)

    return _look_at(list(checkpoint.family.pieces(checkpoint.model_shape)), parts, advice)


def _look_at(
    items: list[Item], read: Callable[[Item], Iterable[tuple[str, torch.Tensor]]], advice: Advice
) -> list[str]:
    found = NotFinite()

    def look(item: Item) -> int:
        for name, tensor in read(item):
            found.look_at(name, tensor)
        return 1

    work_through(items, look, title="values", total=len(items), workers=DEFAULT_WORKERS, unit="tensor")
    if found.names:
        advice.note(f"weights: {found}")
    return sorted(found.names)
