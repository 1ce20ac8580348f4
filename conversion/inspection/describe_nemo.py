"""Describe a NeMo checkpoint: imported, trained, or of adapters only."""

import math
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path, PosixPath
from typing import Any

import torch

from nemo_longpo.model_directory.model_config import ModelConfig

from ..model_on_disk import open_nemo
from ..nemo_checkpoint import context, torch_dist
from ..nemo_checkpoint.adapters import Adapters
from .report_parts import Advice, describe_tokenizer, look_at_nemo, parameters, positions, sizes

OPTIMIZER = "optimizer"
PARALLEL = {
    "tensor": "tensor_model_parallel_size",
    "pipeline": "pipeline_model_parallel_size",
    "context": "context_parallel_size",
}


def describe_nemo(path: Path, advice: Advice, headers_only: bool) -> dict[str, Any]:
    """Return the report of a NeMo checkpoint. Raises InputError if `model.yaml` cannot be read."""
    model = context.read_model(path / "context")
    adapters = advice.attempt("export", lambda: Adapters.of(path, model))
    stored = advice.attempt("export", lambda: torch_dist.DistCheckpoint(path / "weights"))
    opened = advice.attempt("export", lambda: open_nemo(path))
    file = path / "context" / "model.yaml"
    told = opened.config if opened else advice.attempt("export", lambda: ModelConfig.from_nemo(model["config"], file))
    config = told or ModelConfig.parse({}, file)
    if opened and not config.max_position_embeddings:
        advice.note("export: the checkpoint does not say for how many positions the model is; pass --max-length")
    if model["config"].get("window_size"):
        advice.note("training: attention is limited to a sliding window; import the model with --full-attention")
    family = opened.family if opened else None
    weights = [name for name in stored.tensor_names() if name.startswith(torch_dist.KEY_PREFIX)] if stored else []
    not_finite = None
    if opened and not headers_only:
        not_finite = advice.attempt("export", lambda: look_at_nemo(opened, advice))
    return {
        "kind": "nemo adapters" if adapters else "nemo",
        "architecture": family.architecture if family else None,
        "family": family.model_type if family else None,
        "parameters": parameters(opened.family, opened.model_shape) if opened else None,
        "weights": _describe_weights(stored, weights, not_finite) if stored else None,
        "sizes": sizes(config),
        "positions": positions(config),
        "tokenizer": describe_tokenizer(opened.origin.path, config.raw, advice) if opened else None,
        "nemo": {
            "model": _name(model),
            "config": _name(model["config"]),
            "adapters": _describe_adapters(adapters, model),
            "embedding_rows": _embedding_rows(stored),
            "objective": _plain(model.get("objective")),
            "pair_layout": model.get("pair_layout"),
            "trained": _progress(path / "weights" / "common.pt", advice),
            "parallel": {name: model["config"].get(field) for name, field in PARALLEL.items()},
            "optimizer": _describe_optimizer(stored) if stored else None,
        },
    }


def _name(described: Mapping[str, Any]) -> str:
    return str(described.get("_target_")).rpartition(".")[2]


def _plain(described: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {name: value for name, value in described.items() if name != "_target_"} if described else None


def _describe_weights(
    stored: torch_dist.DistCheckpoint, names: Iterable[str], not_finite: list[str] | None
) -> dict[str, Any]:
    names = list(names)
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
    name = f"{torch_dist.KEY_PREFIX}embedding.word_embeddings.weight"
    return stored.shape(name)[0] if stored and name in stored.tensor_names() else None


def _describe_adapters(adapters: Adapters | None, model: Mapping[str, Any]) -> dict[str, Any] | None:
    if adapters is None:
        return None
    targets = model["model_transform"].get("target_modules")
    return {"dim": adapters.dim, "alpha": adapters.alpha, "target_modules": targets, "base": adapters.base}


def _describe_optimizer(stored: torch_dist.DistCheckpoint) -> dict[str, int] | None:
    names = [name for name in stored.tensor_names() if OPTIMIZER in name.split(".")]
    return {"tensors": len(names), "bytes": sum(_bytes(stored, name) for name in names)} if names else None


def _progress(path: Path, advice: Advice) -> dict[str, Any] | None:
    """Steps, epoch and samples of the training so far. None for a checkpoint that was only imported."""
    try:
        with torch.serialization.safe_globals([PosixPath]):
            common = torch.load(path, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        advice.note(f"training: {path} does not tell how far it came: {str(error).splitlines()[0]}")
        return None
    if not common.get("global_step"):
        return None
    data = [value for value in common.values() if isinstance(value, dict) and "consumed_samples" in value]
    consumed = data[0]["consumed_samples"] if data else None
    return {"steps": common["global_step"], "epoch": common.get("epoch"), "consumed_samples": consumed}
