"""One safetensors file, read and written tensor by tensor, so that never more than one tensor is in memory.

The library's own writer wants all tensors of a file at once. A file is eight bytes (length of the header), a header in
JSON with every tensor's type, shape and place, and then the tensors: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nemo_longpo.errors import InputError

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
                self._headers = json.loads(file.read(length))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged or truncated ({error}); download it again") from error
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


class SafetensorsWriter:
    """Lays out a file for tensors that come later, in any order; byte for byte what the library makes of them."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]):
        self._path = path
        self._tensors = dict(tensors)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._starts: dict[str, int] = {}
        end = 0
        order = {dtype: place for place, dtype in enumerate(DTYPE_NAMES)}
        for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (order[item[1][0]], item[0])):
            self._starts[name] = end
            end += math.prod(shape) * dtype.itemsize
            offsets = [self._starts[name], end]
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._data_start = 8 + len(encoded)
        with path.open("xb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(self._data_start + end)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        dtype, shape = self._tensors[name]
        assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)} for a place of {shape}"
        data = tensor.to(dtype).flatten().view(torch.uint8).numpy()
        with self._path.open("r+b") as file:
            file.seek(self._data_start + self._starts[name])
            file.write(data.data)
