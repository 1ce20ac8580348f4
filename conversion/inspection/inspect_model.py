"""The report of `longpo convert inspect`: one JSON object, and the same as aligned lines for people.

What it says of a Hugging Face directory is here too.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_longpo.checkpoints.forms import RUN_CONFIG
from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import cache_hint
from nemo_longpo.terminal import count, printable, size

from .. import model_on_disk
from ..families.name_tables import family_of
from ..huggingface import directory, tensor_files
from ..huggingface.config import check_supported, for_import, with_rope
from ..huggingface.weights import IGNORED_SUFFIX, HfWeights, check_tensors
from . import describe_checkpoint, report_parts


def inspect_model(path: Path, *, headers_only: bool = False) -> dict[str, Any]:
    """Describe a Hugging Face model or a checkpoint, or the newest complete one of a run's directory.

    Missing or unknown values are null. `advice` lists what would stop an import, an export or training, and likely
    mistakes; it is empty if there are none. Every weight is read to find NaN and infinities, unless `headers_only`.
    """
    advice = report_parts.Advice()
    path = find_checkpoint(path)
    if model_on_disk.is_checkpoint(path):
        report = describe_checkpoint.describe_checkpoint(path, advice, headers_only)
    elif (path / "config.json").is_file():
        report = describe_huggingface(path, advice, headers_only)
    else:
        raise InputError(f"{path} {_what_else(path)}")
    return {"path": str(path), **report, "advice": list(advice)}


def _what_else(path: Path) -> str:
    if not path.is_dir():
        return "is not a directory; give that of a Hugging Face model or of a checkpoint"
    if (path / "adapter_config.json").is_file():
        return "holds PEFT adapters, not a model; merge them into their base with `peft` first"
    if (path / ".metadata").is_file():
        return f"is a part of a NeMo checkpoint; give the directory above it, {path.absolute().parent}"
    marks = ("context", "config.json", RUN_CONFIG)
    inside = sorted(found.parent for name in marks for found in path.glob(f"*/{name}"))
    hint = f"; {inside[-1]} in it is one" if inside else cache_hint(path)
    return f"is neither {model_on_disk.KINDS}{hint}"


def describe_huggingface(path: Path, advice: report_parts.Advice, headers_only: bool) -> dict[str, Any]:
    """Return the report of a Hugging Face directory. Raises InputError if `config.json` cannot be read."""
    model = directory.HfDirectory.open(path)
    config = model.config
    family = advice.attempt("import", lambda: family_of(config))
    model_shape = advice.attempt("import", lambda: check_supported(config))
    if family and model_shape:
        advice.attempt("import", lambda: for_import(config))
        advice.attempt("import with --rope-theta", lambda: with_rope(config, 2 * config.theta, None))
    advice.attempt("import", model.require_tokenizer)
    weights = advice.attempt("import", lambda: HfWeights(model))
    if family and model_shape and weights:
        advice.attempt("import", lambda: check_tensors(weights, family, model_shape))
    not_finite = None
    if weights and not headers_only:
        not_finite = advice.attempt("import", lambda: report_parts.look_at_huggingface(weights, advice))
    return {
        "kind": "huggingface",
        "architecture": ", ".join(config.architectures or []) or None,
        "family": family.model_type if family else None,
        "parameters": report_parts.parameters(family, model_shape) if family and model_shape else _count(weights),
        "weights": _describe_weights(weights, not_finite) if weights else None,
        "sizes": report_parts.sizes(config),
        "positions": report_parts.positions(config),
        "tokenizer": report_parts.describe_tokenizer(path, config.raw, advice, "import"),
        "nemo": None,
        "bridge": None,
    }


def _count(weights: HfWeights | None) -> int | None:
    """Number of stored values, for a model whose structure is not known."""
    if weights is None:
        return None
    return sum(math.prod(weights.shape(name)) for name in weights if not name.endswith(IGNORED_SUFFIX))


def _describe_weights(weights: HfWeights, not_finite: list[str] | None) -> dict[str, Any]:
    dtypes: dict[str, int] = {}
    for name in weights:
        dtype = weights.dtype(name)
        known = str(tensor_files.TORCH_DTYPES.get(dtype, dtype)).removeprefix("torch.")
        dtypes[known] = dtypes.get(known, 0) + math.prod(weights.shape(name)) * _bits(dtype) // 8
    return {
        "tensors": len(list(weights)),
        "files": len({weights.file_of(name) for name in weights}),
        "bytes": sum(dtypes.values()),
        "bytes_by_dtype": dtypes,
        "not_finite": not_finite,
    }


def _bits(dtype: str) -> int:
    """Bits of one element, from safetensors' name of the dtype: BF16, F8_E4M3, I32; BOOL takes a byte."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8


LABEL = 18
KINDS = {
    "huggingface": "Hugging Face model",
    "nemo": "NeMo checkpoint",
    "bridge": "Megatron-Bridge checkpoint",
    "nemo adapters": "NeMo checkpoint of LoRA adapters; what they are added to lies elsewhere",
}


def format_report(report: Mapping[str, Any]) -> str:
    sections = [_identity(report), _sizes(report), _positions(report["positions"])]
    if report["tokenizer"]:
        sections.append(_tokenizer(report["tokenizer"]))
    if trainer := report["nemo"] or report["bridge"]:
        sections.append(_trainer(trainer, "NeMo" if report["nemo"] else "Bridge"))
    lines = [line for section in sections for line in [*_aligned(section), ""]]
    advice = [printable(f"- {line}") for line in report["advice"]] or ["no obstacle found"]
    return "\n".join([*lines, *advice])


def _aligned(section: Mapping[str, str | None]) -> Iterator[str]:
    for name, value in section.items():
        if value is not None:
            yield printable(f"{name:{LABEL}}{value}")


def _identity(report: Mapping[str, Any]) -> dict[str, str | None]:
    weights = report["weights"]
    dtypes = weights and ", ".join(f"{size(held)} {dtype}" for dtype, held in weights["bytes_by_dtype"].items())
    family = f"family {report['family']}" if report["family"] else "not supported"
    return {
        "path": report["path"],
        "kind": KINDS[report["kind"]],
        "architecture": report["architecture"] and f"{report['architecture']} ({family})",
        "parameters": report["parameters"] and _number(report["parameters"]),
        "weights": weights and f"{dtypes} in {count(weights['tensors'], 'tensor')}, {count(weights['files'], 'file')}",
    }


def _sizes(report: Mapping[str, Any]) -> dict[str, str | None]:
    sizes, tokenizer = (report[name] or {} for name in ("sizes", "tokenizer"))
    trainer = report["nemo"] or report["bridge"] or {}
    rows = [f"{_number(sizes['vocabulary'])} rows"]
    if trainer.get("embedding_rows") not in (None, sizes["vocabulary"]):
        rows.append(f"padded to {_number(trainer['embedding_rows'])} in the checkpoint")
    if tokenizer.get("tokens") is not None:
        rows.append(f"{_number(tokenizer['tokens'])} tokens")
    tied = {True: "tied", False: "untied", None: "tied or not: the configuration does not say"}[sizes["tied"]]
    return {
        "layers": _number(sizes["layers"]),
        "hidden size": _number(sizes["hidden"]),
        "feed-forward size": _number(sizes["feed_forward"]),
        "heads": f"{_number(sizes['heads'])} of size {_number(sizes['head_size'])}, "
        f"{_number(sizes['kv_heads'])} for keys and values",
        "vocabulary": ", ".join(rows),
        "embeddings": tied,
    }


def _positions(positions: Mapping[str, Any]) -> dict[str, str | None]:
    scaling, window = positions["rope_scaling"], positions["sliding_window"]
    return {
        "positions": _number(positions["max_position_embeddings"]),
        "rotary base": _number(positions["rope_theta"]),
        "rope scaling": json.dumps(scaling) if scaling else "none",
        "sliding window": _number(window) if window else "none",
    }


def _tokenizer(tokenizer: Mapping[str, Any]) -> dict[str, str | None]:
    special = {
        name: ", ".join(f"{json.dumps(value)} in {place}" for place, value in places.items() if value is not None)
        for name, places in tokenizer["special_ids"].items()
    }
    files = ", ".join(tokenizer["files"]) or "no files"
    return {
        "tokenizer": f"{tokenizer['class'] or 'of no named class'} ({files})",
        "chat template": tokenizer["chat_template"] or "none",
        **{f"{name} id": places or "none" for name, places in special.items()},
    }


def _trainer(trainer: Mapping[str, Any], name: str) -> dict[str, str | None]:
    adapters, trained, optimizer = trainer["adapters"], trainer["trained"], trainer["optimizer"]
    targets = ", ".join((adapters and adapters["target_modules"]) or ["all linear layers"])
    return {
        f"{name} classes": ", ".join(filter(None, (trainer["model"], trainer["config"]))),
        "adapters": adapters and f"rank {adapters['dim']}, alpha {adapters['alpha']}: {targets}",
        "trained from": adapters and adapters["base"],
        "objective": trainer["objective"] and f"{_pairs(trainer['objective'])}, pair layout {trainer['pair_layout']}",
        "trained": trained and _pairs(trained),
        "parallel sizes": _pairs(trainer["parallel"]) if trained else None,
        "optimizer state": f"{size(optimizer['bytes'])} in {count(optimizer['tensors'], 'tensor')}"
        if optimizer
        else "none",
    }


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None)


def _number(value: float | None) -> str:
    """Every digit, thousands separated; whole numbers without decimals."""
    return "?" if value is None else f"{value:,.15g}"
