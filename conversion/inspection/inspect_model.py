"""The object that `longpo convert inspect --json` prints, and what it says of a Hugging Face directory."""

import math
import re
from pathlib import Path
from typing import Any

from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import cache_hint

from ..families.known import family_of
from ..huggingface.config import check_supported, for_import, with_rope
from ..huggingface.directory import HfDirectory
from ..huggingface.tensor_files import TORCH_DTYPES
from ..huggingface.weights import IGNORED_SUFFIX, HfWeights, check_tensors
from .describe_nemo import describe_nemo
from .report_parts import Advice, describe_tokenizer, look_at_huggingface, parameters, positions, sizes


def inspect_model(path: Path, *, headers_only: bool = False) -> dict[str, Any]:
    """Describe a Hugging Face model or a NeMo checkpoint, or the newest complete one of a run's directory.

    What is not there or not known is null. `advice` lists what would stop an import, an export or training, and what is
    likely to be a mistake; it is empty where all is well. Every weight is read, to find NaN and infinities, unless
    `headers_only`.
    """
    advice = Advice()
    path = find_checkpoint(path)
    if (path / "context").is_dir():
        report = describe_nemo(path, advice, headers_only)
    elif (path / "config.json").is_file():
        report = describe_huggingface(path, advice, headers_only)
    else:
        raise InputError(f"{path} {_what_else(path)}")
    return {"path": str(path), **report, "advice": list(advice)}


def _what_else(path: Path) -> str:
    if not path.is_dir():
        return "is not a directory; give that of a Hugging Face model or of a NeMo checkpoint"
    if (path / "adapter_config.json").is_file():
        return "holds PEFT adapters, not a model; merge them into their base with `peft` first"
    if (path / ".metadata").is_file():
        return f"is a part of a NeMo checkpoint; give the directory above it, {path.absolute().parent}"
    inside = sorted(found.parent for name in ("context", "config.json") for found in path.glob(f"*/{name}"))
    hint = f"; {inside[-1]} in it is one" if inside else cache_hint(path)
    return f"is neither a Hugging Face model (config.json) nor a NeMo checkpoint (context/){hint}"


def describe_huggingface(path: Path, advice: Advice, headers_only: bool) -> dict[str, Any]:
    """Raises InputError if `config.json` cannot be read: nothing is known then."""
    directory = HfDirectory.open(path)
    config = directory.config
    family = advice.attempt("import", lambda: family_of(config))
    model_shape = advice.attempt("import", lambda: check_supported(config))
    if family and model_shape:
        advice.attempt("import", lambda: for_import(config))
        advice.attempt("import with --rope-theta", lambda: with_rope(config, 2 * config.theta, None))
    advice.attempt("import", directory.require_tokenizer)
    weights = advice.attempt("import", lambda: HfWeights(directory))
    if family and model_shape and weights:
        advice.attempt("import", lambda: check_tensors(weights, family, model_shape))
    not_finite = None
    if weights and not headers_only:
        not_finite = advice.attempt("import", lambda: look_at_huggingface(weights, advice))
    return {
        "kind": "huggingface",
        "architecture": ", ".join(config.architectures or []) or None,
        "family": family.model_type if family else None,
        "parameters": parameters(family, model_shape) if family and model_shape else _count(weights),
        "weights": _describe_weights(weights, not_finite) if weights else None,
        "sizes": sizes(config),
        "positions": positions(config),
        "tokenizer": describe_tokenizer(path, config.raw, advice, "import"),
        "nemo": None,
    }


def _count(weights: HfWeights | None) -> int | None:
    """Of a model whose structure is not known: everything that is stored."""
    if weights is None:
        return None
    return sum(math.prod(weights.shape(name)) for name in weights if not name.endswith(IGNORED_SUFFIX))


def _describe_weights(weights: HfWeights, not_finite: list[str] | None) -> dict[str, Any]:
    dtypes: dict[str, int] = {}
    for name in weights:
        dtype = weights.dtype(name)
        known = str(TORCH_DTYPES.get(dtype, dtype)).removeprefix("torch.")
        dtypes[known] = dtypes.get(known, 0) + math.prod(weights.shape(name)) * _bits(dtype) // 8
    return {
        "tensors": len(list(weights)),
        "files": len({weights.file_of(name) for name in weights}),
        "bytes": sum(dtypes.values()),
        "bytes_by_dtype": dtypes,
        "not_finite": not_finite,
    }


def _bits(dtype: str) -> int:
    """Of an element; safetensors' names say it: BF16, F8_E4M3, I32, and BOOL takes a byte."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8
