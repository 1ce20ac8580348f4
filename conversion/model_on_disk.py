"""A model on disk, a Hugging Face directory or a NeMo checkpoint: its description, and its tensors piece by piece."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from nemo_longpo.checkpoints import integrity
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import downloads, rope_settings
from nemo_longpo.model_directory.model_config import ModelConfig

from .families import name_tables
from .families.family import Family, Piece
from .huggingface.config import check_supported, with_rope_scaling, with_rope_theta
from .huggingface.directory import HfDirectory
from .huggingface.weights import HfWeights, check_tensors
from .nemo_checkpoint import adapters, context, stock, torch_dist


class Weights(Protocol):
    @property
    def directory(self) -> Path:
        """Directory of the whole weights; for adapters, that of their base."""
        ...

    @property
    def adapted(self) -> frozenset[str]:
        """Names of the Megatron tensors that LoRA adapters change, without KEY_PREFIX."""
        ...

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        """The Hugging Face tensors of a piece, in the order of its names, in the stored dtype. Called by threads."""
        ...


@dataclass(frozen=True, kw_only=True)
class Access:
    """Options for reading a directory as a whole model.

    `base` is a Hugging Face directory with the small files of a NeMo checkpoint; `base_checkpoint` is the new place of
    the checkpoint that LoRA adapters were trained on; `check_hashes` compares the hashes of a NeMo checkpoint's files
    with the record, not only their sizes; `trust_checkpoint` also loads a NeMo checkpoint that names classes outside
    the list of those known to run no code.
    """

    base: Path | None = None
    base_checkpoint: Path | None = None
    allow_pickle: bool = False
    check_hashes: bool = False
    trust_checkpoint: bool = False


NOTHING_ELSE = Access()


@dataclass(frozen=True, kw_only=True)
class ModelOnDisk:
    """A complete model of a supported family, and access to its weights.

    `config` is the model's `config.json`, or for a checkpoint what export would write, with the RoPE settings of
    training. `origin` holds the small files: the directory itself, or a checkpoint's copy of the original's.
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
    """Open a Hugging Face directory (with `config.json`) or a NeMo checkpoint (with `context/`); reads headers only.

    Raises InputError if it is no complete model of a supported family.
    """
    if (path / "context").is_dir():
        holds_adapters = (path / "weights" / adapters.RECORD).is_file()
        return open_nemo(path, access if holds_adapters else replace(access, base_checkpoint=None))
    if not (path / "config.json").is_file():
        hint = downloads.cache_hint(path)
        raise InputError(
            f"{path} is neither a Hugging Face directory (config.json) nor a NeMo checkpoint (context/){hint}"
        )
    directory = HfDirectory.open(path)
    model_shape = check_supported(directory.config)
    family = name_tables.family_of(directory.config)
    weights = HfWeights(directory, allow_pickle=access.allow_pickle)
    try:
        check_tensors(weights, family, model_shape)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return ModelOnDisk(
        path=path,
        access=access,
        side="huggingface",
        config=directory.config,
        origin=directory,
        family=family,
        model_shape=model_shape,
        weights=weights,
    )


def open_nemo(path: Path, access: Access = NOTHING_ELSE) -> ModelOnDisk:
    """Open a checkpoint that `longpo convert import` or stock NeMo made, or one trained from it.

    Its files, and those of the base of adapters, are compared with their record. Raises InputError if it is no complete
    model of a supported family, if a file is not as recorded, or if a base checkpoint is given for whole weights.
    """
    integrity.check(path, hashes=access.check_hashes)
    model = context.read_model(path / "context")
    found = adapters.Adapters.of(path, model)
    if access.base_checkpoint and not found:
        raise InputError(f"{path} holds whole weights; --base-checkpoint is for checkpoints of LoRA adapters")
    whole = found.find_base(access.base_checkpoint) if found else path
    if found:
        integrity.check(whole, hashes=access.check_hashes)
    weights = torch_dist.DistCheckpoint(whole / "weights")
    origin = HfDirectory.open(access.base) if access.base else _kept(path / "context", model, weights)
    if origin.remark is None:  # what NeMo records is checked as it is read, and may lack the number of positions
        check_supported(origin.config)
    config = _as_trained(origin.config, model)
    family, model_shape = name_tables.family_of(config), ModelShape.of(config)
    _check_nemo_tensors(weights, family, model_shape, Path(config.file).name)
    return ModelOnDisk(
        path=path,
        access=access,
        side="nemo",
        config=config,
        origin=origin,
        family=family,
        model_shape=model_shape,
        weights=found.merged_into(weights, family, model_shape) if found else weights,
    )


def _kept(directory: Path, model: Mapping[str, Any], weights: torch_dist.DistCheckpoint) -> HfDirectory:
    """The small files that a checkpoint keeps in its tokenizer's directory; a stock one keeps only the tokenizer's."""
    tokenizer = stock.tokenizer_directory(directory, model)
    if tokenizer is not None and (tokenizer / "config.json").is_file():
        return HfDirectory.open(tokenizer)
    return stock.stock_origin(directory, model, weights)


def _as_trained(config: ModelConfig, model: Mapping[str, Any]) -> ModelConfig:
    changed = with_rope_theta(config, model["config"]["rotary_base"])
    # Our training records the scaling; a checkpoint that was only imported has that of its config.json.
    if "rope_scaling" in model and rope_settings.parse_scaling(model["rope_scaling"], config.file) != config.scaling:
        changed = with_rope_scaling(changed, model["rope_scaling"])
    return changed


def _check_nemo_tensors(weights: torch_dist.DistCheckpoint, family: Family, model_shape: ModelShape, file: str) -> None:
    """Raises InputError if the tensors are of another architecture. Tensor parallelism may pad the vocabulary."""
    pieces = {torch_dist.KEY_PREFIX + piece.entry.key: piece for piece in family.first_pieces(model_shape)}
    for key, piece in pieces.items():
        found, expected = weights.shape(key), piece.global_shape
        padded = piece.entry.is_vocabulary and found[1:] == expected[1:] and found[0] >= expected[0]
        if found != expected and not padded:
            raise InputError(
                f"{weights.directory}: {key} has shape {list(found)}, the model's {file} says "
                f"{list(expected)}; the checkpoint is of another model"
            )
    extra = sorted(
        name for name in weights.tensor_names() if name.startswith(torch_dist.KEY_PREFIX) and name not in pieces
    )
    if extra:
        others = f" and {len(extra) - 1} others" if extra[1:] else ""
        raise InputError(
            f"{weights.directory}: there is no place in {family.architecture} for tensor {extra[0]}{others}"
        )
