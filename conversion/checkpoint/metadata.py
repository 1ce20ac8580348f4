"""The `.metadata` of a distributed checkpoint: which boxes of which tensors lie where in which file.

The file is a pickle. Only the classes that it is made of are let in, so reading it runs no code of the file's choosing,
and one that Megatron wrote is read without Megatron.
"""

import pickle
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata, planner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from nemo_longpo.errors import InputError


def _member(kind: Any, name: str) -> Enum:
    """Some versions of Python (3.11.2 is one) pickle a member of an enumeration as `getattr(kind, name)`."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[name]
    raise pickle.UnpicklingError(f"builtins.getattr of {kind} has no place in it")


_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
_STAND_INS: dict[tuple[str, str], Any] = {
    ("builtins", "getattr"): _member,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,
    # Megatron's classes add fields to PyTorch's that only its own writer looks at.
    (_MEGATRON, "MCoreMetadata"): Metadata,
    (_MEGATRON, "MCoreSavePlan"): SavePlan,
}
_MODULES = {module.__name__: module for module in (filesystem, metadata, planner)}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        found = getattr(torch if module == "torch" else _MODULES.get(module), name, None)
        if isinstance(found, torch.dtype) or (isinstance(found, type) and found.__module__ == module):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def read_metadata(directory: Path) -> Metadata:
    """Raises InputError if the file is not there, damaged, or made of anything else than metadata."""
    path = directory / ".metadata"
    try:
        with path.open("rb") as file:
            found = _Unpickler(file).load()
    except FileNotFoundError:
        raise InputError(f"{directory} is not a complete Megatron torch_dist checkpoint (no .metadata in it)") from None
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path} is damaged or of another version: {error}") from error
    if not isinstance(found, Metadata) or found.storage_data is None:
        raise InputError(f"{path} is of another version: it does not say where the tensors lie")
    return found
