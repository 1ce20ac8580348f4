"""Megatron's `torch_dist` checkpoint format, read and written tensor by tensor without a GPU or a process group.

The format is PyTorch's distributed checkpoint plus two small files: `metadata.json` (which backend) and `common.pt`
(what is not sharded; Megatron-Core 0.19 writes an object among the tensors instead, and reads both).
`megatron.core.dist_checkpointing.save` needs the whole model in memory, CUDA, and helper processes; PyTorch's own
writer keeps the last tensor of every key. So the files are written here: tensors one after the other, as `torch.save`
writes them, and `.metadata`, a pickle of PyTorch's classes, which says where each lies.
"""

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PosixPath
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import torch
from torch.distributed.checkpoint import filesystem, metadata, planner, planner_helpers, utils

from nemo_longpo.checkpoints import completeness, pickled
from nemo_longpo.checkpoints.forms import NEMO, CheckpointForm
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError, one_line

from .families.family import Piece
from .progress import work_through

OPTIMIZER = "optimizer"
"""A part of the name of every tensor of an optimizer's state."""

EXTRA_STATE_OWNERS = (
    "decoder.layers.self_attention.core_attention",
    "decoder.layers.self_attention.linear_proj",
    "decoder.layers.self_attention.linear_qkv",
    "decoder.layers.mlp.linear_fc1",
    "decoder.layers.mlp.linear_fc2",
    "decoder.final_layernorm",
)
"""Modules that load an `_extra_state` object (FP8 scales); it is empty in a new checkpoint."""

QK_NORMS = ("decoder.layers.self_attention.q_layernorm", "decoder.layers.self_attention.k_layernorm")


def extra_states(model_shape: ModelShape, form: CheckpointForm) -> dict[str, object]:
    """Megatron's unique keys (`name/shard_{offset}_{shape}`) of the empty objects that Transformer Engine asks for.

    An empty tensor is what it stores for a module that keeps no FP8 scales.
    """
    states: dict[str, object] = {}
    norms = QK_NORMS if model_shape.qk_norm else ()
    for owner in (*EXTRA_STATE_OWNERS, *norms):
        count = model_shape.layers if ".layers." in owner else 1
        for index in range(count):
            states[f"{form.prefix}{owner}._extra_state/shard_{index}_{count}"] = torch.empty(0, dtype=torch.uint8)
    return states


DAMAGE = (RuntimeError, pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, EOFError)
"""What `torch.load` raises for bytes that are not a tensor."""


class DistCheckpoint:
    """Read access to a `torch_dist` checkpoint, whatever the parallelism it was written with, from several threads."""

    adapted: frozenset[str] = frozenset()

    def __init__(self, directory: Path, form: CheckpointForm = NEMO):
        self.directory, self.form = directory, form
        completeness.require_files(directory, completeness.WEIGHT_FILES)
        self._metadata = pickled.read_metadata(directory)
        if completeness.COMMON_OBJECT not in self._metadata.state_dict_metadata:
            completeness.require_files(directory, [completeness.COMMON_FILE])

    @property
    def whole(self) -> Path:
        return self.directory.parent if self.form.weights else self.directory

    def key(self, piece: Piece) -> str:
        """Name of the whole tensor that holds a piece."""
        return self.form.prefix + piece.entry.key

    def _tensor(self, key: str) -> metadata.TensorStorageMetadata:
        found = self._metadata.state_dict_metadata.get(key)
        if not isinstance(found, metadata.TensorStorageMetadata):
            raise InputError(f"{self.directory} has no tensor {key}; it is not a checkpoint of this model")
        return found

    def tensor_names(self) -> list[str]:
        """Every tensor, optimizer state included."""
        entries = self._metadata.state_dict_metadata
        return [key for key, value in entries.items() if isinstance(value, metadata.TensorStorageMetadata)]

    def model_tensors(self) -> list[str]:
        return [key for key in self.tensor_names() if key.startswith(self.form.prefix) and not is_optimizer(key)]

    def parts_of(self, key: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Offsets and sizes of the parts in which a tensor is stored."""
        return [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in self._tensor(key).chunks]

    def common(self) -> dict[str, Any]:
        """What is no tensor and the same on all ranks: counters, settings, the optimizer's groups of parameters.

        Raises InputError if it is damaged, or asks for anything but plain values, tensors and paths.
        """
        path, place = self.directory / completeness.COMMON_FILE, None
        index = metadata.MetadataIndex(completeness.COMMON_OBJECT)
        if completeness.COMMON_OBJECT in self._metadata.state_dict_metadata:
            place = self._metadata.storage_data[index]
            path = self.directory / place.relative_path
        try:
            with path.open("rb") as file, torch.serialization.safe_globals([PosixPath]):
                content: Any = utils._create_file_view(file, place.offset, place.length) if place else file
                found = torch.load(content, map_location="cpu", weights_only=True)
        except (OSError, *DAMAGE) as error:
            raise InputError(f"{path} does not tell how far training came: {one_line(error)}") from error
        found = found[0] if isinstance(found, list) and found else found  # of the one rank that writes it
        return found if isinstance(found, dict) else {}

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensor(key).size)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensor(key).properties.dtype

    def read(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
        """The box `[offsets, offsets + sizes)` of a tensor, in the stored dtype.

        Holds one stored part at a time beside the result; the part itself is the result if it is the only one.
        """
        stored = self._tensor(key)
        box = metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = planner_helpers.create_read_items_for_chunk_list(key, stored, [box])
        if sum(math.prod(item.lengths) for item in items) != math.prod(sizes):
            raise InputError(f"{self.directory} lacks a part of {key}; the checkpoint is incomplete")
        if len(items) == 1:
            return self._load(items[0], stored)
        result = torch.empty(sizes, dtype=stored.properties.dtype)
        for item in items:
            result[_box(item.dest_offsets, item.lengths)] = self._load(item, stored)
        return result

    def _load(self, item: planner.ReadItem, stored: metadata.TensorStorageMetadata) -> torch.Tensor:
        """What the item asks for of one stored part."""
        index = item.storage_index
        place = self._metadata.storage_data.get(index)
        if place is None:
            raise InputError(f"{self.directory / '.metadata'} does not say where {index.fqn} lies; copy it again")
        path = self.directory / place.relative_path
        where = f"{path}: the part of {index.fqn} at byte {place.offset}"
        with path.open("rb") as file:
            bytes_of_part = cast(BinaryIO, utils._create_file_view(file, place.offset, place.length))
            try:
                part = torch.load(bytes_of_part, map_location="cpu", weights_only=True)
            except DAMAGE as error:
                raise InputError(f"{where} is damaged; copy it again") from error
        promised = stored.properties.dtype, *next(c.sizes for c in stored.chunks if c.offsets == index.offset)
        if not isinstance(part, torch.Tensor) or (part.dtype, *part.shape) != promised:
            raise InputError(f"{where} is not the tensor that .metadata promises; copy the checkpoint again")
        return part[_box(item.storage_offsets, item.lengths)]

    def piece_dtype(self, piece: Piece) -> torch.dtype:
        return self.dtype(self.key(piece))

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        """Return the Hugging Face tensors of a piece of the model."""
        tensor = self.read(self.key(piece), piece.offsets, piece.sizes)
        return piece.split(tensor.reshape(piece.shape))


def is_optimizer(key: str) -> bool:
    """Whether a tensor belongs to the state of an optimizer."""
    return OPTIMIZER in key.split(".")


def _box(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))


BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}

CONTENT = {"content_metadata": {"singleton_local_shards": False}}
"""What Megatron asks of a checkpoint before it names the tensors that it wants."""

NOTHING_COMMON: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
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
    directory: Path,
    chunks: Sequence[Chunk],
    objects: Mapping[str, object],
    *,
    common: Mapping[str, object] = NOTHING_COMMON,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a checkpoint of tensors and pickled objects (Megatron's ShardedObjects, by unique key).

    `common` is what Megatron keeps beside them. `directory` may exist already.
    Each worker holds one chunk at a time, and what `load` needs to make it. They append to a file each, so with several
    of them a tensor's place differs from run to run. `advance` is told the bytes of each chunk that is written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    places: dict[metadata.MetadataIndex, filesystem._StorageInfo] = {}
    idle: SimpleQueue[BinaryIO] = SimpleQueue()
    with ExitStack() as stack:
        for number in range(workers):
            idle.put(stack.enter_context((directory / f"__0_{number}.distcp").open("wb")))

        def save(index: metadata.MetadataIndex, value: object) -> None:
            file = idle.get()
            try:
                places[index] = _append(file, value)
            finally:
                idle.put(file)

        def convert(chunk: Chunk) -> int:
            save(metadata.MetadataIndex(chunk.key, chunk.offsets), _alone(chunk.load().reshape(chunk.sizes)))
            return chunk.size

        for key, value in objects.items():
            # Megatron saves the list of a key's local objects; there is one rank here.
            save(metadata.MetadataIndex(key), [value])
        total = sum(chunk.size for chunk in chunks)
        work_through(chunks, convert, title="import", total=total, workers=workers, advance=advance)
    (directory / ".metadata").write_bytes(pickle.dumps(_metadata(chunks, objects, places)))
    torch.save({**CONTENT, **common}, directory / completeness.COMMON_FILE)
    (directory / "metadata.json").write_text(json.dumps(BACKEND))


def _append(file: BinaryIO, value: object) -> filesystem._StorageInfo:
    start = file.tell()
    torch.save(value, file)
    return filesystem._StorageInfo(Path(file.name).name, start, file.tell() - start)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """`torch.save` writes all of the storage that a tensor looks at, so it must not look at a part of one."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def _metadata(
    chunks: Sequence[Chunk],
    objects: Mapping[str, object],
    places: Mapping[metadata.MetadataIndex, filesystem._StorageInfo],
) -> metadata.Metadata:
    tensors: dict[str, metadata.TensorStorageMetadata] = {}
    for chunk in chunks:
        whole = metadata.TensorStorageMetadata(
            metadata.TensorProperties(chunk.dtype), torch.Size(chunk.global_shape), []
        )
        box = metadata.ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
        tensors.setdefault(chunk.key, whole).chunks.append(box)
    return metadata.Metadata(
        {**tensors, **{key: metadata.BytesStorageMetadata() for key in objects}}, storage_data=dict(places)
    )
