"""The object that `longpo convert inspect --json` prints."""

from pathlib import Path
from typing import Any

from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import cache_hint

from .advice import Advice
from .describe_huggingface import describe_huggingface


def inspect_model(path: Path, *, headers_only: bool = False) -> dict[str, Any]:
    """Describe a Hugging Face model or a NeMo checkpoint, or the newest complete one of a run's directory.

    What is not there or not known is null. `advice` lists what would stop an import, an export or training, and what is
    likely to be a mistake; it is empty where all is well. Every weight is read, to find NaN and infinities, unless
    `headers_only`.
    """
    advice = Advice()
    path = find_checkpoint(path)
    if (path / "context").is_dir():
        # Reading distributed checkpoints takes a part of PyTorch that is a second in the importing.
        from .describe_nemo import describe_nemo

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
