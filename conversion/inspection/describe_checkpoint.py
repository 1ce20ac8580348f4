"""Describe a checkpoint of either trainer: imported, trained, or of adapters only."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path, PosixPath
from typing import Any, get_args

import torch

from nemo_longpo.checkpoints import forms
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.trainers import TrainerName

from .. import model_on_disk, torch_dist
from ..nemo_checkpoint.adapters import Adapters
from .report_parts import Advice, describe_tokenizer, look_at_checkpoint, parameters, positions, sizes

PARALLEL = {
    "tensor": "tensor_model_parallel_size",
    "pipeline": "pipeline_model_parallel_size",
    "context": "context_parallel_size",
}


def describe_checkpoint(path: Path, advice: Advice, headers_only: bool) -> dict[str, Any]:
    """Return the report of a checkpoint. Raises InputError if its record of the model cannot be read."""
    form, model = forms.form_of(path) or forms.NEMO, model_on_disk.read_model(path)
    adapters = advice.attempt("export", lambda: Adapters.of(path, model)) if form is forms.NEMO else None
    stored = advice.attempt("export", lambda: model_on_disk.stored_weights(path))
    opened = advice.attempt("export", lambda: model_on_disk.open_checkpoint(path))
    file = path / (forms.RUN_CONFIG if form is forms.BRIDGE else "context/model.yaml")
    told = opened.config if opened else advice.attempt("export", lambda: ModelConfig.from_nemo(model["config"], file))
    config = told or ModelConfig.parse({}, file)
    if opened and not config.max_position_embeddings:
        advice.note("export: the checkpoint does not say for how many positions the model is; pass --max-length")
    if model["config"].get("window_size"):
        advice.note("training: attention is limited to a sliding window; import the model with --full-attention")
    family, tokenizer, not_finite = (opened.family if opened else None), None, None
    if opened:
        raw, version = config.raw, form.transformers
        tokenizer = describe_tokenizer(opened.origin.path, raw, advice, transformers=version)
    if opened and not headers_only:
        not_finite = advice.attempt("export", lambda: look_at_checkpoint(opened, advice))
    found = {
        "model": _name(model),
        "config": _name(model["config"]),
        "adapters": _describe_adapters(adapters, model),
        "embedding_rows": _embedding_rows(stored),
        **_describe_loss(model if form is forms.NEMO else model["config"]),
        "trained": _progress(path, form, advice),
        "parallel": {name: model["config"].get(field) for name, field in PARALLEL.items()},
        "optimizer": _describe_optimizer(stored) if stored else None,
    }
    return {
        "kind": "nemo adapters" if adapters else form.trainer,
        "architecture": family.architecture if family else None,
        "family": family.model_type if family else None,
        "parameters": parameters(opened.family, opened.model_shape) if opened else None,
        "weights": _describe_weights(stored, not_finite) if stored else None,
        "sizes": sizes(config),
        "positions": positions(config),
        "tokenizer": tokenizer,
        **{name: found if form.trainer == name else None for name in get_args(TrainerName)},
    }


def _name(described: Mapping[str, Any]) -> str | None:
    """Last part of the name of a recorded class. Bridge records no class of the model itself."""
    name = described.get("_target_")
    return str(name).rpartition(".")[2] if name else None


def _describe_loss(recorded: Mapping[str, Any]) -> dict[str, Any]:
    objective = recorded.get("objective")
    plain = {name: value for name, value in objective.items() if name != "_target_"} if objective else None
    return {"objective": plain, "pair_layout": recorded.get("pair_layout")}


def _describe_weights(stored: torch_dist.DistCheckpoint, not_finite: list[str] | None) -> dict[str, Any]:
    names = stored.model_tensors()
    dtypes: dict[str, int] = {}
    for name in names:
        dtype = str(stored.dtype(name)).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + _bytes(stored, name)
    files = len(list(stored.directory.glob("*.distcp")))
    return {
        "tensors": len(names),
        "files": files,
        "bytes": sum(dtypes.values()),
        "bytes_by_dtype": dtypes,
        "not_finite": not_finite,
    }


def _bytes(stored: torch_dist.DistCheckpoint, name: str) -> int:
    return math.prod(stored.shape(name)) * stored.dtype(name).itemsize


def _embedding_rows(stored: torch_dist.DistCheckpoint | None) -> int | None:
    """Rows of the stored embedding, which tensor parallelism may have padded."""
    name = f"{stored.form.prefix}embedding.word_embeddings.weight" if stored else ""
    return stored.shape(name)[0] if stored and name in stored.tensor_names() else None


def _describe_adapters(adapters: Adapters | None, model: Mapping[str, Any]) -> dict[str, Any] | None:
    if adapters is None:
        return None
    targets = model["model_transform"].get("target_modules")
    return {"dim": adapters.dim, "alpha": adapters.alpha, "target_modules": targets, "base": adapters.base}


def _describe_optimizer(stored: torch_dist.DistCheckpoint) -> dict[str, int] | None:
    names = [name for name in stored.tensor_names() if torch_dist.is_optimizer(name)]
    return {"tensors": len(names), "bytes": sum(_bytes(stored, name) for name in names)} if names else None


def _progress(path: Path, form: forms.CheckpointForm, advice: Advice) -> dict[str, Any] | None:
    """Steps, epoch and samples of the training so far. None for a checkpoint that was only imported."""
    file = path / ("train_state.pt" if form is forms.BRIDGE else "weights/common.pt")
    try:
        with torch.serialization.safe_globals([PosixPath]):
            found = torch.load(file, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        advice.note(f"training: {file} does not tell how far it came: {str(error).splitlines()[0]}")
        return None
    if form is forms.BRIDGE:
        steps, samples = (int(found.get(name, 0)) for name in ("step", "consumed_train_samples"))
        return {"steps": steps, "epoch": None, "consumed_samples": samples} if steps else None
    if not found.get("global_step"):
        return None
    data = [value for value in found.values() if isinstance(value, dict) and "consumed_samples" in value]
    consumed = data[0]["consumed_samples"] if data else None
    return {"steps": found["global_step"], "epoch": found.get("epoch"), "consumed_samples": consumed}
