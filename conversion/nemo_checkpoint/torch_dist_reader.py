"""Megatron's `torch_dist` checkpoint format, read box by box without a GPU or a process group."""

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.utils import _create_file_view

from nemo_longpo.checkpoints.completeness import WEIGHT_FILES, require_files
from nemo_longpo.checkpoints.pickled import read_metadata
from nemo_longpo.errors import InputError

from ..families.family import Piece
from .names import KEY_PREFIX

DAMAGE = (RuntimeError, pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, EOFError)
"""What `torch.load` raises for bytes that are not a tensor."""


class DistCheckpoint:
    """Read access to a `torch_dist` checkpoint, whatever the parallelism it was written with, from several threads."""

    def __init__(self, directory: Path):
        self.directory = directory
        require_files(directory, WEIGHT_FILES)
        self._metadata = read_metadata(directory)

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
        """The box `[offsets, offsets + sizes)` of a tensor, in the stored dtype.

        Holds one stored part at a time beside the result; the part itself is the result if it is the only one.
        """
        stored = self._tensor(key)
        box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(key, stored, [box])
        if sum(math.prod(item.lengths) for item in items) != math.prod(sizes):
            raise InputError(f"{self.directory} lacks a part of {key}; the checkpoint is incomplete")
        if len(items) == 1:
            return self._load(items[0], stored)
        result = torch.empty(sizes, dtype=stored.properties.dtype)
        for item in items:
            result[_box(item.dest_offsets, item.lengths)] = self._load(item, stored)
        return result

    def _load(self, item: ReadItem, stored: TensorStorageMetadata) -> torch.Tensor:
        """What the item asks for of one stored part."""
        index = item.storage_index
        place = self._metadata.storage_data.get(index)
        if place is None:
            raise InputError(f"{self.directory / '.metadata'} does not say where {index.fqn} lies; copy it again")
        path = self.directory / place.relative_path
        where = f"{path}: the part of {index.fqn} at byte {place.offset}"
        with path.open("rb") as file:
            bytes_of_part = cast(BinaryIO, _create_file_view(file, place.offset, place.length))
            try:
                part = torch.load(bytes_of_part, map_location="cpu", weights_only=True)
            except DAMAGE as error:
                raise InputError(f"{where} is damaged; copy it again") from error
        promised = stored.properties.dtype, *next(c.sizes for c in stored.chunks if c.offsets == index.offset)
        if not isinstance(part, torch.Tensor) or (part.dtype, *part.shape) != promised:
            raise InputError(f"{where} is not the tensor that .metadata promises; copy the checkpoint again")
        return part[_box(item.storage_offsets, item.lengths)]

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        """The Hugging Face tensors that a piece of the model stands for."""
        tensor = self.read(KEY_PREFIX + piece.entry.key, piece.offsets, piece.sizes)
        return piece.split(tensor.reshape(piece.shape))


def _box(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
