"""A `pytorch_model.bin`, read tensor by tensor by PyTorch's restricted unpickler: tensors come out, code does not run.

The file is mapped, so that of its tensors only those that are used come into memory.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from nemo_longpo.errors import InputError

from .safetensors_file import DTYPE_NAMES

_DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError),
    *(AttributeError, AssertionError),
)
"""What PyTorch raises over bytes that it cannot make sense of (found by changing bytes at random)."""


class PickleReader:
    """Answers what `SafetensorsReader` does. Here too a file is open only while a tensor of it is in use."""

    def __init__(self, path: Path):
        self.path = path
        tensors = self._load()
        self._headers = {
            name: (DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape))
            for name, tensor in tensors.items()
        }

    def names(self) -> list[str]:
        return list(self._headers)

    def dtype(self, name: str) -> str:
        return self._headers[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][1]

    def read(self, name: str) -> torch.Tensor:
        """Of the mapped file: its pages are read when they are used, and let go with the tensor."""
        return self._load()[name].detach()

    def _load(self) -> dict[str, torch.Tensor]:
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except _DAMAGED as error:
            raise InputError(self._explain()) from error
        if not isinstance(content, dict):
            raise InputError(f"{self.path} holds a {type(content).__name__}, not tensors by name")
        for name, value in content.items():
            if not isinstance(name, str) or not _is_plain(value):
                raise InputError(f"{self.path} holds a {type(value).__name__} under {name!r}, not a plain tensor")
        return content

    def _explain(self) -> str:
        """Looks at the names that the pickle asks for, without following them."""
        try:
            foreign = get_unsafe_globals_in_checkpoint(str(self.path))
        except _DAMAGED:
            foreign = []
        if foreign:
            return (
                f"{self.path} asks for {', '.join(sorted(foreign))}, which weights do not need; nothing of it was run, "
                "and it is not converted"
            )
        return (
            f"{self.path} is damaged, or of a PyTorch before 1.6; download it again, or load and save it with a newer "
            "PyTorch"
        )


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta
