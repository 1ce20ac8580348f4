"""One file of tensors, read and written tensor by tensor, so that never more than one tensor is in memory.

The safetensors library's writer wants all tensors at once. A file is eight bytes (length of the header), a header in
JSON with every tensor's type, shape and place, and then the tensors: https://github.com/huggingface/safetensors#format

A `pytorch_model.bin` is read by PyTorch's restricted unpickler: tensors come out, code does not run.
"""

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import parse_json_object

from ..tensor_values import to_dtype

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""In the order in which the library sorts them within a file."""

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class SafetensorsReader:
    """Opening has the library check the header against the file. Tensors are then read from their place in the file:
    the library would map the whole file, and pages of it that were touched count as memory of the process for as long
    as one of its tensors lives.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(str(path), framework="pt"):
                pass
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                self.header = file.read(length).decode()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged or truncated ({error}); download it again") from error
        self._headers: dict[str, Any] = json.loads(self.header)
        self._headers.pop("__metadata__", None)
        self._data_start = 8 + length

    def names(self) -> list[str]:
        return list(self._headers)

    def dtype(self, name: str) -> str:
        return self._headers[name]["dtype"]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._headers[name]["shape"])

    def read(self, name: str) -> torch.Tensor:
        """A tensor of one of TORCH_DTYPES."""
        start, end = self._headers[name]["data_offsets"]
        data = torch.empty(end - start, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self._data_start + start)
            if file.readinto(data.numpy().data) != end - start:
                raise InputError(f"{self.path} has become shorter: tensor {name} is not all there; download it again")
        return data.view(TORCH_DTYPES[self.dtype(name)]).reshape(self.shape(name))


Tensors = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of every tensor of a file."""

METADATA = "__metadata__"


def plain_header(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> str:
    """The header that the library writes: the metadata of PyTorch's files unless others are given, tensors by dtype and
    name, one behind the other, spaces up to a multiple of eight bytes."""
    header: dict[str, object] = {METADATA: dict({"format": "pt"} if metadata is None else metadata)}
    end = 0
    order = {dtype: place for place, dtype in enumerate(DTYPE_NAMES)}
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (order[item[1][0]], item[0])):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return encoded + " " * (-len(encoded.encode()) % 8)


def header_like(original: str, tensors: Tensors, where: str) -> str:
    """The `original` header if it is one of these tensors, else a plain one with its metadata.

    Raises InputError, naming the file `where` it was kept, if it is no JSON.
    """
    described = parse_json_object(original, where, "import the model again")
    metadata = described.pop(METADATA, None)
    if _describes(described, tensors):
        return original
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    return plain_header(tensors, metadata if texts else None)


def _describes(described: Mapping[str, Any], tensors: Tensors) -> bool:
    """Whether these entries of a header are those of `tensors`, and their places leave no gap."""
    places: list[tuple[int, int]] = []
    for name, (dtype, shape) in tensors.items():
        match described.get(name):
            case {"dtype": str(kind), "shape": list(sizes), "data_offsets": [int(start), int(end)]} if (
                kind == DTYPE_NAMES[dtype] and sizes == list(shape) and end - start == math.prod(shape) * dtype.itemsize
            ):
                places.append((start, end))
            case _:
                return False
    starts, ends = zip(*sorted(places), strict=True) if places else ((), ())
    return len(described) == len(tensors) and [0, *ends[:-1]] == list(starts or (0,))


class SafetensorsWriter:
    """Lays out a file for tensors that come later, in any order, behind a header that describes them."""

    def __init__(self, path: Path, tensors: Tensors, header: str | None = None):
        self._path = path
        self._tensors = dict(tensors)
        header = header or plain_header(tensors)
        places = json.loads(header)
        places.pop(METADATA, None)
        self._starts = {name: entry["data_offsets"][0] for name, entry in places.items()}
        encoded = header.encode()
        self._data_start = 8 + len(encoded)
        end = max((entry["data_offsets"][1] for entry in places.values()), default=0)
        with path.open("xb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(self._data_start + end)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        dtype, shape = self._tensors[name]
        assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)} for a place of {shape}"
        data = to_dtype(tensor, dtype, name).flatten().view(torch.uint8).numpy()
        with self._path.open("r+b") as file:
            file.seek(self._data_start + self._starts[name])
            file.write(data.data)


_DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError),
    *(AttributeError, AssertionError),
)
"""Errors that PyTorch raises for damaged bytes (found by changing bytes at random)."""


class PickleReader:
    """Answers what `SafetensorsReader` does, for a `pytorch_model.bin`.

    The file is mapped while a tensor of it is in use, so that only what is used comes into memory.
    """

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
