"""Megatron's `torch_dist` checkpoint format, written tensor by tensor without a GPU or a process group.

The format is PyTorch's distributed checkpoint plus two small files: `metadata.json` (which backend) and `common.pt`
(what is not sharded). `megatron.core.dist_checkpointing.save` needs the whole model in memory, CUDA, and helper
processes; PyTorch's own writer keeps the last tensor of every key. So the files are written here: tensors one after the
other, as `torch.save` writes them, and `.metadata`, a pickle of PyTorch's classes, which says where each lies.
"""

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ..progress import work_through

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

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.sizes) * self.dtype.itemsize


def write_checkpoint(
    directory: Path, chunks: Sequence[Chunk], objects: Mapping[str, object], *, workers: int = 1
) -> None:
    """Write a checkpoint of tensors and pickled objects (Megatron's ShardedObjects, by unique key).

    Each worker holds one chunk at a time, and what `load` needs to make it. They append to a file each, so with several
    of them a tensor's place differs from run to run.
    """
    directory.mkdir(parents=True)
    places: dict[MetadataIndex, _StorageInfo] = {}
    idle: SimpleQueue[BinaryIO] = SimpleQueue()
    with ExitStack() as stack:
        for number in range(workers):
            idle.put(stack.enter_context((directory / f"__0_{number}.distcp").open("wb")))

        def save(index: MetadataIndex, value: object) -> None:
            file = idle.get()
            try:
                places[index] = _append(file, value)
            finally:
                idle.put(file)

        def convert(chunk: Chunk) -> int:
            save(MetadataIndex(chunk.key, chunk.offsets), _alone(chunk.load().reshape(chunk.sizes)))
            return chunk.size

        for key, value in objects.items():
            # Megatron saves the list of a key's local objects; there is one rank here.
            save(MetadataIndex(key), [value])
        work_through(chunks, convert, title="import", total=sum(chunk.size for chunk in chunks), workers=workers)
    (directory / ".metadata").write_bytes(pickle.dumps(_metadata(chunks, objects, places)))
    torch.save({"content_metadata": {"singleton_local_shards": False}}, directory / "common.pt")
    (directory / "metadata.json").write_text(json.dumps(BACKEND))


def _append(file: BinaryIO, value: object) -> _StorageInfo:
    start = file.tell()
    torch.save(value, file)
    return _StorageInfo(Path(file.name).name, start, file.tell() - start)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """`torch.save` writes all of the storage that a tensor looks at, so it must not look at a part of one."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def _metadata(
    chunks: Sequence[Chunk], objects: Mapping[str, object], places: Mapping[MetadataIndex, _StorageInfo]
) -> Metadata:
    tensors: dict[str, TensorStorageMetadata] = {}
    for chunk in chunks:
        whole = TensorStorageMetadata(TensorProperties(chunk.dtype), torch.Size(chunk.global_shape), [])
        box = ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
        tensors.setdefault(chunk.key, whole).chunks.append(box)
    return Metadata({**tensors, **{key: BytesStorageMetadata() for key in objects}}, storage_data=dict(places))
