"""What only the weights themselves tell: whether they are numbers."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from ..families.family import Piece
from ..huggingface.safetensors_file import TORCH_DTYPES
from ..huggingface.weights import HfWeights
from ..nemo_checkpoint.opened import NemoCheckpoint
from ..progress import DEFAULT_WORKERS, work_through
from ..values import NotFinite
from .advice import Advice

Item = TypeVar("Item")


def look_at_huggingface(weights: HfWeights, advice: Advice) -> list[str]:
    """Names of the tensors with NaN or infinities, of the types that can hold them."""
    names = [name for name in weights if weights.dtype(name) in TORCH_DTYPES]
    return _look_at(names, lambda name: [(name, weights.read(name))], advice)


def look_at_nemo(checkpoint: NemoCheckpoint, advice: Advice) -> list[str]:
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
