"""A model on disk, whichever side it lies on: one description, and its tensors piece by piece."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from nemo_longpo.errors import InputError

from .checkpoint.nemo_checkpoint import NemoCheckpoint
from .families.family import Family, Piece
from .families.known import family_of
from .families.layouts import Geometry
from .huggingface.config import check_supported
from .huggingface.directory import HfDirectory
from .huggingface.weights import HfWeights, check_tensors


class Weights(Protocol):
    def parts(self, piece: Piece) -> list[torch.Tensor]:
        """The Hugging Face tensors of a piece, in the order of its names, in the stored dtype."""
        ...


@dataclass(frozen=True)
class Source:
    """`config` is the model's `config.json`, or what export would write for one; `where` names it in errors.

    `origin` holds the small files: the directory itself, or what a checkpoint keeps of the model it was made from.
    """

    path: Path
    side: Literal["huggingface", "nemo"]
    config: dict[str, Any]
    where: str
    origin: HfDirectory
    family: Family
    geometry: Geometry
    weights: Weights


def open_source(path: Path, base: Path | None = None) -> Source:
    """A Hugging Face directory (it has a `config.json`) or a NeMo checkpoint (it has a `context/`).

    `base` completes a NeMo checkpoint that does not carry its Hugging Face files. Reads headers only.
    """
    if (path / "context").is_dir():
        checkpoint = NemoCheckpoint.open(path, base)
        origin = checkpoint.origin
        where = checkpoint.where
        family, geometry = checkpoint.family, checkpoint.geometry
        return Source(path, "nemo", checkpoint.config, where, origin, family, geometry, checkpoint.weights)
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is neither a Hugging Face directory (config.json) nor a NeMo checkpoint (context/)")
    directory = HfDirectory.open(path)
    where = str(path / "config.json")
    check_supported(directory.config, where)
    family, geometry = family_of(directory.config, where), Geometry.from_config(directory.config)
    weights = HfWeights(directory)
    check_tensors(weights, family, geometry)
    return Source(path, "huggingface", directory.config, where, directory, family, geometry, weights)
