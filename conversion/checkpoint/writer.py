"""Megatron's `torch_dist` checkpoint format, written tensor by tensor without a GPU or a process group.

The format is PyTorch's distributed checkpoint plus two small files: `metadata.json` (which backend) and `common.pt`
(what is not sharded). `megatron.core.dist_checkpointing.save` needs the whole model in memory, CUDA, and helper
processes; PyTorch's own writer asks for one tensor at a time, so peak memory is one layer's largest tensor.
"""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

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
