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
    """Opening reads and checks the header. The file is open only while a tensor is read: pages of a mapped file that
    have been touched count as memory of the process for as long as it stays mapped.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(str(path), framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (a handle, not a dict)
                self._headers = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged or truncated ({error}); download it again") from error

    def names(self) -> list[str]:
        return list(self._headers)

    def dtype(self, name: str) -> str:
        return self._headers[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][1]

    def read(self, name: str) -> torch.Tensor:
        with safe_open(str(self.path), framework="pt") as file:
            return file.get_tensor(name)


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
        data = tensor.to(dtype).contiguous().flatten().view(torch.uint8).numpy()
        with self._path.open("r+b") as file:
            file.seek(self._data_start + self._starts[name])
            file.write(data.data)
