"""Megatron's `torch_dist` checkpoint format, written and read tensor by tensor without a GPU or a process group.

The format is PyTorch's distributed checkpoint plus two small files: `metadata.json` (which backend) and `common.pt`
(what is not sharded). `megatron.core.dist_checkpointing.save` needs the whole model in memory, CUDA, and helper
processes; PyTorch's own writer asks for one tensor at a time, so peak memory is one layer's largest tensor.
"""

import io
import json
import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nemo_longpo.errors import InputError

BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class Chunk:
    """A piece of one checkpoint tensor: where it sits and how to get it. `load` returns a tensor of `sizes`."""

    key: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]


class _StreamingPlanner(DefaultSavePlanner):
    """Hands the writer each chunk when its turn comes, instead of a state dict that holds them all."""

    def __init__(self, chunks: Sequence[Chunk], objects: dict[str, object], advance: Callable[[], object]):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._chunks = {MetadataIndex(chunk.key, chunk.offsets): chunk for chunk in chunks}
        self._objects = objects
        self._advance = advance

    def create_local_plan(self) -> SavePlan:
        items = [
            WriteItem(
                index=index,
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)),
                    properties=TensorProperties(dtype=chunk.dtype),
                    size=torch.Size(chunk.global_shape),
                ),
            )
            for index, chunk in self._chunks.items()
        ]
        items += [WriteItem(index=MetadataIndex(key), type=WriteItemType.BYTE_IO) for key in self._objects]
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            buffer = io.BytesIO()
            # Megatron saves the list of a key's local objects; there is one writer here.
            torch.save([self._objects[write_item.index.fqn]], buffer)
            return buffer
        index = MetadataIndex(write_item.index.fqn, write_item.index.offset)
        chunk = self._chunks[index]
        tensor = chunk.load().reshape(chunk.sizes)
        self._advance()
        return tensor


def write(
    directory: Path, chunks: Sequence[Chunk], objects: dict[str, object], advance: Callable[[], object] = lambda: None
) -> None:
    """Write a checkpoint of tensors and pickled objects (Megatron's ShardedObjects, by unique key).

    `advance` is called once per chunk written.
    """
    directory.mkdir(parents=True)
    planner = _StreamingPlanner(chunks, objects, advance)
    # Without read-ahead, which the writer otherwise does on machines with a GPU.
    writer = dcp.FileSystemWriter(directory, per_thread_copy_ahead=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
    torch.save({"content_metadata": {"singleton_local_shards": False}}, directory / "common.pt")
    (directory / "metadata.json").write_text(json.dumps(BACKEND))


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
        try:
            self._metadata = self._reader.read_metadata()
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
            raise InputError(f"{directory / '.metadata'} is damaged or of another version: {error}") from error
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


def empty_extra_state() -> Any:
    """What Transformer Engine stores for a module that keeps no FP8 scales."""
    return torch.empty(0, dtype=torch.uint8)
