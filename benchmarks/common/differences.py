"""What is not the same in two Hugging Face directories."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ABSENT = object()


def differences(before: Path, after: Path) -> dict[str, list[str]]:
    """Names of files that are not the same byte for byte, of fields of config.json, and of tensors."""
    files = differing(file_digests(before), file_digests(after))
    if not files:
        return {"files": [], "fields": [], "tensors": []}
    fields = differing(*(json.loads((model / "config.json").read_text()) for model in (before, after)))
    return {"files": files, "fields": fields, "tensors": differing(tensor_digests(before), tensor_digests(after))}


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [name for name in sorted(old | new) if old.get(name, ABSENT) != new.get(name, ABSENT)]


def files_of(directory: Path) -> dict[str, Path]:
    return {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}


def file_digests(model: Path) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files_of(model).items()}


def tensor_digests(model: Path) -> dict[str, tuple[str, list[int], str]]:
    found = {}
    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a handle, not a dict)
                tensor = file.get_tensor(name)
                data = tensor.contiguous().flatten().view(torch.uint8).numpy()
                found[name] = str(tensor.dtype), list(tensor.shape), hashlib.sha256(data).hexdigest()
    return found
