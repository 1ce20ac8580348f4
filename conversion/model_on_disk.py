"""A model on disk, a Hugging Face directory or a checkpoint: its description, and its tensors piece by piece."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from nemo_longpo.checkpoints import forms, integrity
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import downloads, rope_settings
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.trainers import TrainerName

from . import bridge_checkpoint, torch_dist
from .families import name_tables
from .families.family import Family, Piece
from .huggingface.config import check_supported, with_max_length, with_rope_scaling, with_rope_theta
from .huggingface.directory import HfDirectory
from .huggingface.weights import HfWeights, check_tensors
from .nemo_checkpoint import adapters, context, stock


class Weights(Protocol):
    @property
    def whole(self) -> Path:
        """The model whose weights these are: a checkpoint or a directory; for adapters, that of their base."""
        ...

    @property
    def adapted(self) -> frozenset[str]:
        """Megatron's own names of the tensors that LoRA adapters change."""
        ...

    def piece_dtype(self, piece: Piece) -> torch.dtype:
        """The stored dtype of a piece; of an adapted one, that of the base."""
        ...

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        """The Hugging Face tensors of a piece, in the order of its names, in the stored dtype. Called by threads."""
        ...


@dataclass(frozen=True, kw_only=True)
class Access:
    """Options for reading a directory as a whole model.

    `base` is a Hugging Face directory with the small files of a checkpoint; `base_checkpoint` is the new place of the
    NeMo checkpoint that LoRA adapters were trained on; `check_hashes` compares the hashes of a checkpoint's files with
    the record, not only their sizes; `trust_checkpoint` also loads a checkpoint that names classes outside the list of
    those known to run no code.
    """

    base: Path | None = None
    base_checkpoint: Path | None = None
    allow_pickle: bool = False
    check_hashes: bool = False
    trust_checkpoint: bool = False


NOTHING_ELSE = Access()

KINDS = (
    "a Hugging Face directory (config.json) nor a NeMo checkpoint (context/) nor one of Megatron-Bridge "
    "(run_config.yaml)"
)


@dataclass(frozen=True, kw_only=True)
class ModelOnDisk:
    """A complete model of a supported family, and access to its weights.

    `config` is the model's `config.json`, or for a checkpoint what export would write, with the RoPE settings of
    training. `origin` holds the small files: the directory itself, or a checkpoint's copy of the original's.
    """

    path: Path
    access: Access
    kind: TrainerName | Literal["huggingface"]
    config: ModelConfig
    origin: HfDirectory
    family: Family
    model_shape: ModelShape
    weights: Weights


def open_model(path: Path, access: Access = NOTHING_ELSE) -> ModelOnDisk:
    """Open a Hugging Face directory (with `config.json`) or a checkpoint (see `forms`); reads headers only.

    Raises InputError if it is no complete model of a supported family.
    """
    if is_checkpoint(path):
        holds_adapters = (path / "weights" / adapters.RECORD).is_file()
        return open_checkpoint(path, access if holds_adapters else replace(access, base_checkpoint=None))
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is neither {KINDS}{downloads.cache_hint(path)}")
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
        kind="huggingface",
        config=directory.config,
        origin=directory,
        family=family,
        model_shape=model_shape,
        weights=weights,
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint rather than a Hugging Face model, as far as its mark shows."""
    form = forms.form_of(path)
    return form is forms.BRIDGE or (form is not None and (path / "context").is_dir())


def read_model(path: Path) -> dict[str, Any]:
    """Return the record of the model that a checkpoint keeps, its configuration under `config`."""
    return bridge_checkpoint.read_model(path) if _form(path) is forms.BRIDGE else context.read_model(path / "context")


def stored_weights(path: Path) -> torch_dist.DistCheckpoint:
    form = _form(path)
    return torch_dist.DistCheckpoint(path / form.weights, form)


def _form(path: Path) -> forms.CheckpointForm:
    return forms.form_of(path) or forms.NEMO


def open_checkpoint(path: Path, access: Access = NOTHING_ELSE) -> ModelOnDisk:
    """Open a checkpoint that `longpo convert import` or a trainer's own import made, or one trained from it.

    Its files, and those of the base of adapters, are compared with their record. Raises InputError if it is no complete
    model of a supported family, if a file is not as recorded, or if a base checkpoint is given for whole weights.
    """
    integrity.check(path, hashes=access.check_hashes)
    form, model = _form(path), read_model(path)
    found = adapters.Adapters.of(path, model) if form is forms.NEMO else None
    if access.base_checkpoint and not found:
        raise InputError(f"{path} holds whole weights; --base-checkpoint is for checkpoints of LoRA adapters")
    whole = found.find_base(access.base_checkpoint) if found else path
    if found:
        integrity.check(whole, hashes=access.check_hashes)
    weights = stored_weights(whole)
    origin = HfDirectory.open(access.base) if access.base else _kept(path, model, weights)
    if origin.remark is None:  # what NeMo records is checked as it is read, and may lack the number of positions
        check_supported(origin.config)
    config = _as_trained(origin.config, model, form)
    family, model_shape = name_tables.family_of(config), ModelShape.of(config)
    _check_stored(weights, family, model_shape, Path(config.file).name)
    return ModelOnDisk(
        path=path,
        access=access,
        kind=form.trainer,
        config=config,
        origin=origin,
        family=family,
        model_shape=model_shape,
        weights=found.merged_into(weights, family, model_shape) if found else weights,
    )


def _kept(path: Path, model: Mapping[str, Any], weights: torch_dist.DistCheckpoint) -> HfDirectory:
    """The small files that a checkpoint keeps; a stock one of NeMo keeps only the tokenizer's."""
    if weights.form is forms.BRIDGE:
        return bridge_checkpoint.small_files(path, model)
    directory = path / "context"
    tokenizer = stock.tokenizer_directory(directory, model)
    if tokenizer is not None and (tokenizer / "config.json").is_file():
        return HfDirectory.open(tokenizer)
    return stock.stock_origin(directory, model, weights)


def _as_trained(config: ModelConfig, model: Mapping[str, Any], form: forms.CheckpointForm) -> ModelConfig:
    """The configuration with the rotary settings of training, and for a run in Bridge with its number of positions."""
    recorded = model["config"]
    changed = with_rope_theta(config, recorded.get("rotary_base") or config.theta)
    # Our training records the scaling; a checkpoint that was only imported has that of its config.json.
    if "rope_scaling" in model and rope_settings.parse_scaling(model["rope_scaling"], config.file) != config.scaling:
        changed = with_rope_scaling(changed, model["rope_scaling"])
    # NeMo's runs take the positions of their import; in Bridge they are a setting of the run.
    positions, known = recorded.get("seq_length") or 0, changed.max_position_embeddings
    return with_max_length(changed, positions) if form is forms.BRIDGE and known and positions > known else changed


def _check_stored(weights: torch_dist.DistCheckpoint, family: Family, model_shape: ModelShape, file: str) -> None:
    """Raises InputError if the tensors are of another architecture. Tensor parallelism may pad the vocabulary."""
    pieces = {weights.key(piece): piece for piece in family.first_pieces(model_shape)}
    for key, piece in pieces.items():
        found, expected = weights.shape(key), piece.global_shape
        padded = piece.entry.is_vocabulary and found[1:] == expected[1:] and found[0] >= expected[0]
        if found != expected and not padded:
            raise InputError(
                f"{weights.directory}: {key} has shape {list(found)}, the model's {file} says "
                f"{list(expected)}; the checkpoint is of another model"
            )
    extra = sorted(set(weights.model_tensors()) - set(pieces))
    if extra:
        others = f" and {len(extra) - 1} others" if extra[1:] else ""
        raise InputError(
            f"{weights.directory}: there is no place in {family.architecture} for tensor {extra[0]}{others}"
        )
