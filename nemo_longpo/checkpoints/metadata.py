"""The `.metadata` of a distributed checkpoint: which boxes of which tensors lie where in which file.

The file is a pickle. Only the classes that it is made of are allowed, so reading it runs no code that the file
names, and one that Megatron wrote is read without Megatron. Its places and sizes are checked against the files.
"""

import io
import math
import pickle
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata, planner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan

from nemo_longpo.errors import InputError

from .completeness import require_sizes
from .pickled import DAMAGED, check_claims


def _member(kind: Any, name: str) -> Enum:
    """Some versions of Python (3.11.2 is one) pickle a member of an enumeration as `getattr(kind, name)`."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[name]
    raise pickle.UnpicklingError(f"builtins.getattr of {kind} has no place in it")


_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
_CLASSES = {
    metadata: (
        *("Metadata", "StorageMeta", "MetadataIndex", "BytesStorageMetadata"),
        *("TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    planner: ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    filesystem: ("_StorageInfo",),
}
_PLAIN: dict[tuple[str, str], Any] = {
    ("builtins", "getattr"): _member,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,
    # Megatron's classes add fields to PyTorch's that only its own writer looks at.
    (_MEGATRON, "MCoreMetadata"): Metadata,
    (_MEGATRON, "MCoreSavePlan"): SavePlan,
    **{(module.__name__, name): getattr(module, name) for module, names in _CLASSES.items() for name in names},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def read_metadata(directory: Path) -> Metadata:
    """Read the `.metadata` in `directory` and hold it to the files beside it.

    Raises InputError if it is not there, is damaged, or holds anything but metadata; if it names a file outside
    `directory`, one that is missing or too short, or a tensor that does not fit into its file.
    """
    path = directory / ".metadata"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{directory} is not a complete Megatron torch_dist checkpoint (no .metadata in it)") from None
    check_claims(content, str(path))
    try:
        found = _Unpickler(io.BytesIO(content)).load()
        if isinstance(found, Metadata) and found.storage_data is not None:
            _check_tensors(found)
            places = _check_places(found)
        else:
            raise InputError(f"{path} is of another version: it does not say where the tensors lie")
    except DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged or of another version: {error}") from error
    require_sizes(directory, places)
    return found


class _Unfit(ValueError):
    """The metadata contradicts itself."""


def _hold(true: bool, reason: str) -> None:
    if not true:
        raise _Unfit(reason)


def _sizes(value: Any) -> bool:
    return isinstance(value, torch.Size) and all(size >= 0 for size in value)


def _check_tensors(found: Metadata) -> None:
    for name, entry in found.state_dict_metadata.items():
        _hold(isinstance(name, str), f"{name!r} is no name of a tensor")
        if isinstance(entry, BytesStorageMetadata):
            continue
        _hold(isinstance(entry, TensorStorageMetadata), f"{name} is no tensor")
        _hold(_sizes(entry.size) and isinstance(entry.properties.dtype, torch.dtype), f"{name} has no shape")
        for chunk in entry.chunks:
            _hold(isinstance(chunk, ChunkStorageMetadata), f"{name} has a part that is none")
            _hold(_sizes(chunk.offsets) and _sizes(chunk.sizes), f"{name} has a part without a shape")
            fits = len(chunk.offsets) == len(chunk.sizes) == len(entry.size) and all(
                offset + size <= whole
                for offset, size, whole in zip(chunk.offsets, chunk.sizes, entry.size, strict=True)
            )
            _hold(fits, f"a part of {name} lies outside of the tensor")


def _check_places(found: Metadata) -> dict[str, int]:
    """Return file → bytes that must be there."""
    chunks = {
        (name, chunk.offsets): math.prod(chunk.sizes) * entry.properties.dtype.itemsize
        for name, entry in found.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
        for chunk in entry.chunks
    }
    ends: dict[str, int] = {}
    for index, place in found.storage_data.items():
        _hold(isinstance(index, MetadataIndex) and isinstance(place, filesystem._StorageInfo), "a place is none")
        name = place.relative_path
        _hold(isinstance(name, str) and name not in ("", ".", "..") and "/" not in name, f"{name!r} is no file's name")
        _hold(type(place.offset) is int and type(place.length) is int, f"the place of {index.fqn} is no number")
        _hold(place.offset >= 0 and place.length >= 0, f"the place of {index.fqn} is negative")
        _hold(not getattr(place, "transform_descriptors", None), f"{index.fqn} is compressed")
        _hold(chunks.get((index.fqn, index.offset), 0) <= place.length, f"{index.fqn} has no room where it lies")
        ends[name] = max(ends.get(name, 0), place.offset + place.length)
    return ends
