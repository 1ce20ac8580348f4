"""Megatron's `torch_dist` checkpoint format, read box by box without a GPU or a process group."""

import math
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nemo_longpo.conversion.families.family import Piece
from nemo_longpo.errors import InputError

from .metadata import read_metadata
from .names import KEY_PREFIX


class _SlicePlanner(DefaultLoadPlanner):
    """Receives what a reader finds into one given tensor."""

    def __init__(self, target: torch.Tensor):
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._target


class DistCheckpoint:
    """Read access to a `torch_dist` checkpoint, whatever the parallelism it was written with."""

    def __init__(self, directory: Path):
        self.directory = directory
        if not (directory / ".metadata").is_file() or not (directory / "metadata.json").is_file():
            raise InputError(f"{directory} is not a complete Megatron torch_dist checkpoint (no metadata in it)")
        self._reader = dcp.FileSystemReader(directory)
        self._metadata = read_metadata(directory)
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._check_file_sizes()

    def _check_file_sizes(self) -> None:
        ends: dict[str, int] = {}
        for item in (self._metadata.storage_data or {}).values():
            ends[item.relative_path] = max(ends.get(item.relative_path, 0), item.offset + item.length)
        for name, end in ends.items():
            path = self.directory / name
            if not path.is_file():
                raise InputError(f"{path} is missing from the checkpoint; copy it again")
            if path.stat().st_size < end:
                raise InputError(f"{path} is truncated: {path.stat().st_size} bytes of at least {end}; copy it again")

    def _tensor(self, key: str) -> TensorStorageMetadata:
        found = self._metadata.state_dict_metadata.get(key)
        if not isinstance(found, TensorStorageMetadata):
            raise InputError(f"{self.directory} has no tensor {key}; it is not a checkpoint of this model")
        return found

    def tensor_names(self) -> list[str]:
        """Every tensor, optimizer state included."""
        entries = self._metadata.state_dict_metadata
        return [key for key, value in entries.items() if isinstance(value, TensorStorageMetadata)]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensor(key).size)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensor(key).properties.dtype

    def read(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
        """The box `[offsets, offsets + sizes)` of a tensor, in the stored dtype."""
        stored = self._tensor(key)
        target = torch.empty(sizes, dtype=stored.properties.dtype)
        box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(key, stored, [box])
        if sum(math.prod(item.lengths) for item in items) != target.numel():
            raise InputError(f"{self.directory} lacks a part of {key}; the checkpoint is incomplete")
        self._reader.read_data(LoadPlan(items), _SlicePlanner(target))
        return target

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        """The Hugging Face tensors that a piece of the model stands for."""
        tensor = self.read(KEY_PREFIX + piece.entry.key, piece.offsets, piece.sizes)
        return piece.split(tensor.reshape(piece.shape))
