"""Pickles of a checkpoint, which came from somewhere else: the names that they ask for, and `.metadata`.

They may claim no more memory than their bytes can fill, and ask for no name that is not on a list. `check_names` runs a
pickle with an inert object in the place of everything that it asks for. A real loader then sees the same names, because
names follow from the bytes alone: what an inert object cannot give (a text that would become a name, something else to
call) is refused.

`read_metadata` reads the `.metadata` of a distributed checkpoint: which boxes of which tensors lie where in which file.
Only the classes that it is made of are allowed, so reading it runs no code that the file names, and one that Megatron
wrote is read without Megatron. Its places and sizes are checked against the files.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Collection
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata, planner

from nemo_longpo.errors import InputError, one_line

from .completeness import require_sizes

DAMAGED = (
    *(pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, AssertionError, ImportError),
)
"""What unpickling raises for damaged bytes (found by changing bytes at random)."""

Name = tuple[str, str]
"""Module, and the name within it."""

_NEVER_WRITTEN = {"DUP", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
"""What `pickle.dump` and `torch.save` do not write, beside instructions whose argument is a line of text."""


def check_claims(content: bytes, where: str) -> None:
    """Raises InputError if a pickle claims more memory than its bytes fill, which Python reserves before it reads on.

    So it does for a pickle that ends early, or holds an instruction that is not written today.
    """
    at, end = 0, len(content)
    try:
        for opcode, argument, position in pickletools.genops(content):
            name, size, at = opcode.name, argument or 0, position or 0
            is_line = opcode.arg is not None and opcode.arg.n == pickletools.UP_TO_NEWLINE and name != "GLOBAL"
            if is_line or name in _NEVER_WRITTEN:
                raise ValueError(f"{name} is no instruction of today's pickles")
            if name == "LONG_BINPUT" and size > end:
                raise ValueError("a place in memory beyond the number of objects")
            if name == "FRAME" and size > end - at - 9:
                raise ValueError("a frame longer than the file")
    except ValueError as error:
        raise InputError(f"{where} is damaged (at byte {at} or after: {one_line(error)}); copy it again") from error


class _Inert:
    """Accepts whatever a pickle does with an object, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _NotListed(Exception):
    """Its argument is the name that a pickle asked for."""


class _NameReader(pickle.Unpickler):
    def __init__(self, content: bytes, allowed: Collection[Name], storages: bool):
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._allowed, self._storages = allowed, storages

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if (module, name) not in self._allowed:
            raise _NotListed(f"{module}.{name}")
        return _Inert

    def persistent_load(self, pid: Any) -> _Inert:
        if not self._storages:
            raise pickle.UnpicklingError("it refers to something outside")
        return _Inert()


def check_names(content: bytes, allowed: Collection[Name], where: str, advice: str, storages: bool = False) -> None:
    """Raises InputError if the pickle asks for anything but `allowed`; nothing that it asks for is imported or called.

    `advice` ends the sentence. `storages`: it may refer to the tensors beside it, as within a file of `torch.save`.
    """
    check_claims(content, where)
    try:
        _NameReader(content, allowed, storages).load()
    except _NotListed as error:
        raise InputError(
            f"{where} asks for {error}, which a checkpoint does not need; nothing of it was run; {advice}"
        ) from None
    except DAMAGED as error:
        raise InputError(f"{where} is damaged ({error}); copy it again") from error


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
    (_MEGATRON, "MCoreMetadata"): metadata.Metadata,
    (_MEGATRON, "MCoreSavePlan"): planner.SavePlan,
    **{(module.__name__, name): getattr(module, name) for module, names in _CLASSES.items() for name in names},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def read_metadata(directory: Path) -> metadata.Metadata:
    """Read the `.metadata` in `directory` and compare it with the files beside it.

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
        if isinstance(found, metadata.Metadata) and found.storage_data is not None:
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


def _check_tensors(found: metadata.Metadata) -> None:
    for name, entry in found.state_dict_metadata.items():
        _hold(isinstance(name, str), f"{name!r} is no name of a tensor")
        if isinstance(entry, metadata.BytesStorageMetadata):
            continue
        _hold(isinstance(entry, metadata.TensorStorageMetadata), f"{name} is no tensor")
        _hold(_sizes(entry.size) and isinstance(entry.properties.dtype, torch.dtype), f"{name} has no shape")
        for chunk in entry.chunks:
            _hold(isinstance(chunk, metadata.ChunkStorageMetadata), f"{name} has a part that is none")
            _hold(_sizes(chunk.offsets) and _sizes(chunk.sizes), f"{name} has a part without a shape")
            fits = len(chunk.offsets) == len(chunk.sizes) == len(entry.size) and all(
                offset + size <= whole
                for offset, size, whole in zip(chunk.offsets, chunk.sizes, entry.size, strict=True)
            )
            _hold(fits, f"a part of {name} lies outside of the tensor")


def _check_places(found: metadata.Metadata) -> dict[str, int]:
    """Return file → bytes that must be there."""
    chunks = {
        (name, chunk.offsets): math.prod(chunk.sizes) * entry.properties.dtype.itemsize
        for name, entry in found.state_dict_metadata.items()
        if isinstance(entry, metadata.TensorStorageMetadata)
        for chunk in entry.chunks
    }
    ends: dict[str, int] = {}
    for index, place in found.storage_data.items():
        _hold(
            isinstance(index, metadata.MetadataIndex) and isinstance(place, filesystem._StorageInfo), "a place is none"
        )
        name = place.relative_path
        _hold(isinstance(name, str) and name not in ("", ".", "..") and "/" not in name, f"{name!r} is no file's name")
        _hold(type(place.offset) is int and type(place.length) is int, f"the place of {index.fqn} is no number")
        _hold(place.offset >= 0 and place.length >= 0, f"the place of {index.fqn} is negative")
        _hold(not getattr(place, "transform_descriptors", None), f"{index.fqn} is compressed")
        _hold(chunks.get((index.fqn, index.offset), 0) <= place.length, f"{index.fqn} has no room where it lies")
        ends[name] = max(ends.get(name, 0), place.offset + place.length)
    return ends
