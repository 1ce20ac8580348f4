"""A model on disk, whichever side it lies on: one description, and its tensors piece by piece."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import cache_hint
from nemo_longpo.model_directory.model_config import ModelConfig

from .families.family import Family, Piece
from .families.known import family_of
from .huggingface.config import check_supported
from .huggingface.directory import HfDirectory
from .huggingface.weights import HfWeights, check_tensors
from .nemo_checkpoint.adapters import RECORD as ADAPTERS_RECORD
from .nemo_checkpoint.opened import NemoCheckpoint


class Weights(Protocol):
    def parts(self, piece: Piece) -> list[torch.Tensor]:
        """The Hugging Face tensors of a piece, in the order of its names, in the stored dtype. Called by threads."""
        ...


@dataclass(frozen=True)
class Access:
    """What else is needed, or permitted, to read a directory as a whole model.

    `base` is a Hugging Face directory with the small files of a NeMo checkpoint; `base_checkpoint` is where the
    checkpoint lies that LoRA adapters were trained on; `check_hashes` holds a NeMo checkpoint's files to their record;
    `trust_checkpoint` lets a NeMo checkpoint name what is not known to run no code.
    """

    base: Path | None = None
    base_checkpoint: Path | None = None
    allow_pickle: bool = False
    check_hashes: bool = False
    trust_checkpoint: bool = False


NOTHING_ELSE = Access()


@dataclass(frozen=True)
class ModelOnDisk:
    """`config` is the model's `config.json`, or what export would write for one.

    `origin` holds the small files: the directory itself, or what a checkpoint keeps of the model it was made from.
    """

    path: Path
    access: Access
    side: Literal["huggingface", "nemo"]
    config: ModelConfig
    origin: HfDirectory
    family: Family
    model_shape: ModelShape
    weights: Weights


def open_model(path: Path, access: Access = NOTHING_ELSE) -> ModelOnDisk:
    """A Hugging Face directory (it has a `config.json`) or a NeMo checkpoint (it has a `context/`), by its headers.

    Raises InputError if it is no complete model of a supported family.
    """
    if (path / "context").is_dir():
        base_checkpoint = access.base_checkpoint if (path / "weights" / ADAPTERS_RECORD).is_file() else None
        nemo = NemoCheckpoint.open(path, access.base, base_checkpoint, check_hashes=access.check_hashes)
        return ModelOnDisk(path, access, "nemo", nemo.config, nemo.origin, nemo.family, nemo.model_shape, nemo.weights)
    if not (path / "config.json").is_file():
        hint = cache_hint(path)
        raise InputError(
            f"{path} is neither a Hugging Face directory (config.json) nor a NeMo checkpoint (context/){hint}"
        )
    directory = HfDirectory.open(path)
    model_shape = check_supported(directory.config)
    family = family_of(directory.config)
    weights = HfWeights(directory, allow_pickle=access.allow_pickle)
    try:
        check_tensors(weights, family, model_shape)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return ModelOnDisk(path, access, "huggingface", directory.config, directory, family, model_shape, weights)
