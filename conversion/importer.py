"""Hugging Face directory, or a checkpoint of another trainer → checkpoint. Streaming: no model is built, and no GPU."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nemo_longpo.checkpoints import forms, integrity, run_inputs
from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.shards.fingerprint import weights_fingerprint
from nemo_longpo.terminal import note

from . import bridge_checkpoint, model_on_disk, outputs, progress, tensor_values, torch_dist, training_state
from .families import name_tables
from .families.family import Family, Piece
from .huggingface import directory
from .huggingface.config import ScalingChoice, for_import
from .huggingface.weights import HfWeights, check_tensors
from .nemo_checkpoint import context

FORMATS: dict[str, forms.CheckpointForm] = {form.trainer: form for form in (forms.NEMO, forms.BRIDGE)}


def import_checkpoint(
    model: Path,
    output: Path,
    *,
    format: str = forms.NEMO.trainer,
    rope_theta: float | None = None,
    rope_scaling: ScalingChoice | None = None,
    max_length: int | None = None,
    full_attention: bool = False,
    allow_pickle: bool = False,
    optimizer: bool = False,
    check_hashes: bool = True,
    overwrite: bool = False,
    workers: int = progress.DEFAULT_WORKERS,
) -> Path:
    """Convert a Hugging Face directory, or the weights of a checkpoint of either trainer, to a checkpoint of `format`.

    That is "nemo" (`weights/` and `context/` in `output`) or "bridge" (`iter_0000000/` in it, and the files that name
    it). Of a run's directory the newest complete checkpoint is taken. The weights keep their dtype and bits. A record
    holds size and hash of every file. Another record names the original weights, so that training can check whether
    they scored its shards. `rope_theta`, `rope_scaling` and `max_length` set the policy's rotary base, its scaling and
    the number of positions; the checkpoint keeps all three, and export writes them. A new base with an existing scaling
    requires `rope_scaling`. With `optimizer` the state of training goes across too, and the run goes on at its step.
    Raises InputError, before anything is written, if the input cannot be converted.
    """
    given, model = model, find_checkpoint(model)
    if model != given:
        note(f"import: takes {model}, the newest complete checkpoint of {given}")
    outputs.require_apart(output, model)
    outputs.require_free(output, overwrite=overwrite)
    source = _open(model, output, check_hashes=check_hashes)
    family = name_tables.family_of(source.config)
    config = for_import(
        source.config,
        theta=rope_theta,
        scaling=rope_scaling,
        max_length=max_length,
        full_attention=full_attention,
    )
    source.origin.require_tokenizer(FORMATS[format].transformers)
    weights = source.weights or HfWeights(source.origin, allow_pickle=allow_pickle)
    if isinstance(weights, HfWeights):
        check_tensors(weights, family, ModelShape.of(config))
    policy = _Policy(family, config, ModelShape.of(config), weights)
    state = _read_state(source) if optimizer else None
    with progress.Parts(output, f"import of {model.name}") as parts:
        _write(source, policy, state, FORMATS[format], output, parts, overwrite=overwrite, workers=workers)
    return output


def _read_state(source: "_Source") -> training_state.TrainingState:
    if not isinstance(source.weights, torch_dist.DistCheckpoint):
        raise InputError(f"{source.path} holds no optimizer of a whole model; leave out --optimizer")
    return training_state.read_state(source.weights, model_on_disk.read_model(source.path))


@dataclass(frozen=True)
class _Source:
    """What is imported: `weights` is None for a Hugging Face directory, whose configuration is checked first."""

    path: Path
    origin: directory.HfDirectory
    config: ModelConfig
    weights: model_on_disk.Weights | None = None


@dataclass(frozen=True)
class _Policy:
    """The model that is written, and where its tensors come from."""

    family: Family
    config: ModelConfig
    model_shape: ModelShape
    weights: model_on_disk.Weights


def _open(path: Path, output: Path, *, check_hashes: bool) -> _Source:
    if not model_on_disk.is_checkpoint(path):
        origin = directory.HfDirectory.open(path)
        return _Source(path, origin, origin.config)
    opened = model_on_disk.open_checkpoint(path, model_on_disk.Access(check_hashes=check_hashes))
    outputs.require_apart(output, opened.weights.whole)  # adapters know their base without an option
    if opened.origin.remark:
        note(f"import: {opened.origin.remark}")
    return _Source(path, opened.origin, opened.config, opened.weights)


def _write(
    source: _Source,
    policy: _Policy,
    state: training_state.TrainingState | None,
    form: forms.CheckpointForm,
    output: Path,
    parts: progress.Parts,
    *,
    overwrite: bool,
    workers: int,
) -> None:
    not_finite = tensor_values.NotFinite()
    chunks = plan_chunks(policy.weights, policy.family, policy.model_shape, not_finite, form)
    common: dict[str, Any] = dict(training_state.BRIDGE_COMMON) if form is forms.BRIDGE else {}
    if state and isinstance(policy.weights, torch_dist.DistCheckpoint):
        chunks += training_state.optimizer_chunks(policy.weights, form)
        common = (training_state.bridge_common if form is forms.BRIDGE else training_state.nemo_common)(state)
    size = sum(chunk.size for chunk in chunks) + outputs.bytes_of(source.origin.companions())
    with outputs.new_model(output, overwrite=overwrite, size=size) as partial_output:
        within = Path(forms.iteration_name(state.step if state else 0) if form is forms.BRIDGE else "")
        checkpoint = partial_output / within
        parts.start("describe the model to its trainer")
        _describe(checkpoint, output / within, source, policy, state, form)
        torch_dist.write_checkpoint(
            checkpoint / form.weights,
            chunks,
            torch_dist.extra_states(policy.model_shape, form),
            common=common,
            workers=workers,
            advance=parts.start("write the weights", sum(chunk.size for chunk in chunks)),
        )
        parts.start("name the model by its weights")
        if name := _name_of_weights(source):
            run_inputs.write_origin(checkpoint, name)
        integrity.write_record(checkpoint, parts.start("record the hashes of all files", size))
        parts.start("wait for the disk")
    if not_finite.names:
        note(f"import: {not_finite}")


def _name_of_weights(source: _Source) -> str | None:
    """The name that shards have for the weights; None for trained ones, and for pickles, which score no shards."""
    if source.weights is not None:
        return run_inputs.read_origin(source.path)
    return weights_fingerprint(source.path) if any(source.path.glob("*.safetensors")) else None


def plan_chunks(
    weights: model_on_disk.Weights,
    family: Family,
    model_shape: ModelShape,
    not_finite: tensor_values.NotFinite,
    form: forms.CheckpointForm,
) -> list[torch_dist.Chunk]:
    """One chunk per piece of the model, each read from its source when it is written."""
    return [
        torch_dist.Chunk(
            key=form.prefix + piece.entry.key,
            global_shape=piece.global_shape,
            offsets=piece.offsets,
            sizes=piece.sizes,
            dtype=weights.piece_dtype(piece),
            load=partial(_load, weights, piece, not_finite),
        )
        for piece in family.pieces(model_shape)
    ]


def _load(weights: model_on_disk.Weights, piece: Piece, not_finite: tensor_values.NotFinite) -> torch.Tensor:
    parts = weights.parts(piece)
    for name, part in zip(piece.names, parts, strict=True):
        not_finite.look_at(name, part)
    return tensor_values.to_dtype(piece.join(parts), weights.piece_dtype(piece), piece.entry.key)


def _describe(
    checkpoint: Path,
    final: Path,
    source: _Source,
    policy: _Policy,
    state: training_state.TrainingState | None,
    form: forms.CheckpointForm,
) -> None:
    """Write all but the tensors into `checkpoint`, whose place will be `final`."""
    with TemporaryDirectory() as scratch:
        artifacts = Path(scratch) / forms.SMALL_FILES
        artifacts.mkdir()
        source.origin.copy_companions(artifacts)
        if policy.config != source.origin.config or source.origin.remark:
            directory.write_json(artifacts / "config.json", policy.config.raw)
        if isinstance(policy.weights, HfWeights):  # of a checkpoint the lists are among its small files
            listing = policy.weights.listing(policy.family.copies(policy.model_shape))
            context.write_weight_list(artifacts, listing, policy.weights.headers())
        if form is forms.BRIDGE:
            kept = shutil.copytree(artifacts, checkpoint / form.small_files)
            named = final.absolute() / form.small_files if source.weights else source.path.resolve()
            bridge_checkpoint.write_description(
                kept.parent, policy.family, policy.config, policy.model_shape, source=named, state=state
            )
            return
        with progress.quiet_libraries():
            context.write_context(checkpoint / "context", policy.family, policy.config, policy.model_shape, artifacts)
