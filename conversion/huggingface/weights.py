"""The tensors of a Hugging Face directory, read one at a time from whichever file holds them."""

from collections.abc import Iterator

import torch

from nemo_longpo.conversion.families.family import Family, Piece
from nemo_longpo.conversion.families.layouts import Geometry
from nemo_longpo.errors import InputError

from .directory import INDEX, HfDirectory
from .safetensors_file import TORCH_DTYPES, SafetensorsReader

IGNORED_SUFFIX = ".rotary_emb.inv_freq"
"""A buffer that old versions of `transformers` saved; it follows from the configuration."""


class HfWeights:
    """Opening reads the headers only. A truncated or damaged file, a tensor that the index promises and its file does
    not hold, and a tensor held twice are refused here, before any work is done.
    """

    def __init__(self, directory: HfDirectory):
        self._owner: dict[str, SafetensorsReader] = {}
        for path in directory.weight_files():
            reader = SafetensorsReader(path)
            for name in reader.names():
                if name in self._owner:
                    raise InputError(f"{path} and {self._owner[name].path.name} both hold the tensor {name}")
                self._owner[name] = reader
        for name, file in directory.index().items():
            if name not in self._owner or self.file_of(name) != file:
                raise InputError(
                    f"{directory.path / INDEX} promises the tensor {name} in {file}, which does not hold it"
                )

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def file_of(self, name: str) -> str:
        return self._owner[name].path.name

    def shape(self, name: str) -> tuple[int, ...]:
        return self._owner[name].shape(name)

    def dtype(self, name: str) -> str:
        """In safetensors' spelling: F32, BF16, F16, …"""
        return self._owner[name].dtype(name)

    def read(self, name: str) -> torch.Tensor:
        return self._owner[name].read(name)

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        return [self.read(name) for name in piece.names]


def check_tensors(weights: HfWeights, family: Family, geometry: Geometry) -> None:
    """Every tensor of the architecture is there in the expected shape and a float dtype, and no other tensor is."""
    expected: set[str] = set()
    for piece in family.pieces(geometry):
        for name, shape in zip(piece.names, piece.part_shapes, strict=True):
            expected.add(name)
            if name not in weights:
                raise InputError(f"tensor {name} is missing; its shape would be {list(shape)}")
            found = weights.shape(name)
            if found != shape:
                raise InputError(f"tensor {name} in {weights.file_of(name)} has shape {list(found)}, not {list(shape)}")
            if weights.dtype(name) not in TORCH_DTYPES:
                raise InputError(f"tensor {name} in {weights.file_of(name)} has dtype {weights.dtype(name)}")
        if len({weights.dtype(name) for name in piece.names}) > 1:
            raise InputError(f"tensors {', '.join(piece.names)} have different dtypes")
    for copy, name in family.copies(geometry).items():
        if copy in weights and not torch.equal(weights.read(copy), weights.read(name)):
            raise InputError(f"config.json ties {copy} to {name}, but the two tensors differ")
        expected.add(copy)
    extra = sorted(name for name in set(weights) - expected if not name.endswith(IGNORED_SUFFIX))
    if extra:
        raise InputError(
            f"{len(extra)} tensors have no place in {family.architecture}, the first is {extra[0]}; "
            "is this an adapter, or a model with changed layers?"
        )
