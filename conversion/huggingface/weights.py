"""The tensors of a Hugging Face directory: find their files, explain if there are none, read one at a time."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import check_download, read_model_json

from ..families.family import Family, Piece
from .directory import INDEX, SINGLE, HfDirectory
from .tensor_files import TORCH_DTYPES, PickleReader, SafetensorsReader, plain_header

PICKLE_SUFFIX = ".bin"
PICKLE_SINGLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class WeightFiles:
    """`promised` is what the index says: tensor → file name. It is empty for a model in one file without an index."""

    files: tuple[Path, ...]
    index: Path
    promised: Mapping[str, str]


def find_weight_files(directory: Path, *, allow_pickle: bool) -> WeightFiles:
    """The safetensors files if there are any, else pickles if they are allowed.

    Raises InputError that names the file at fault: nothing to convert, two models in one directory, an index that
    points elsewhere, or a file that is not what was to be downloaded.
    """
    kinds = [(SINGLE, INDEX)] + [(PICKLE_SINGLE, PICKLE_INDEX)] * allow_pickle
    for single, index in kinds:
        if os.path.lexists(directory / index):
            found = _listed(directory / index, directory / single)
        elif os.path.lexists(directory / single):
            found = WeightFiles((directory / single,), directory / index, {})
        else:
            continue
        for file in found.files:
            check_download(file)
        return found
    raise InputError(_why_none(directory))


def _listed(index: Path, single: Path) -> WeightFiles:
    promised = read_model_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise InputError(f"{index} has no weight_map; download the model again")
    for name in promised.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(single.suffix):
            raise InputError(
                f"{index} names {name!r} as a file of the model; only {single.suffix} files beside it are read"
            )
    if single.exists() and single.name not in promised.values():
        raise InputError(
            f"{single.parent} holds two models, {single.name} and the files that {index.name} lists; move one away"
        )
    files = tuple(index.with_name(name) for name in dict.fromkeys(promised.values()))
    return WeightFiles(files, index, promised)


def _why_none(directory: Path) -> str:
    shard = next(directory.glob("model-*-of-*.safetensors"), None)
    if shard:
        return f"{directory} holds {shard.name}, but no {INDEX} that lists the files; download the model again"
    if (directory / PICKLE_SINGLE).exists() or (directory / PICKLE_INDEX).exists():
        return (
            f"{directory} holds its weights as pickles ({PICKLE_SINGLE}), which can run code when they are loaded; "
            "get the model as safetensors, or pass --allow-pickle to read the tensors in them and refuse all else"
        )
    foreign = [path for ending in ("*.bin", "*.pt", "*.pth") for path in sorted(directory.glob(ending))]
    if foreign:
        return (
            f"{foreign[0]} is a pickle, which can run code when it is loaded, and not in Hugging Face's layout; get "
            f"the model as {SINGLE}"
        )
    foreign = [path for ending in ("*.safetensors", "*.gguf") for path in sorted(directory.glob(ending))]
    if foreign:
        return f"{foreign[0]} is not in Hugging Face's layout; get the model as {SINGLE}"
    return f"{directory / SINGLE} does not exist; download the model again"


IGNORED_SUFFIX = ".rotary_emb.inv_freq"
"""A buffer that old versions of `transformers` saved; it can be computed from the configuration."""


class Reader(Protocol):
    """One file. `dtype` is in safetensors' spelling (F32, BF16, F16) where it has a word for the type."""

    path: Path

    def names(self) -> list[str]: ...
    def dtype(self, name: str) -> str: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> torch.Tensor: ...


class HfWeights:
    """Opening reads the headers only. A truncated or damaged file, a tensor that the index promises and its file does
    not hold, and a tensor held twice are refused here, before any work is done. Pickles are read only if allowed.
    """

    adapted: frozenset[str] = frozenset()

    def __init__(self, directory: HfDirectory, *, allow_pickle: bool = False):
        self.whole = directory.path
        self._owner: dict[str, Reader] = {}
        found = find_weight_files(directory.path, allow_pickle=allow_pickle)
        for path in found.files:
            reader: Reader = PickleReader(path) if path.suffix == PICKLE_SUFFIX else SafetensorsReader(path)
            for name in reader.names():
                if name in self._owner:
                    raise InputError(f"{path} and {self._owner[name].path.name} both hold the tensor {name}")
                self._owner[name] = reader
        for name, file in found.promised.items():
            if name not in self._owner or self.file_of(name) != file:
                raise InputError(f"{found.index} promises the tensor {name} in {file}, which does not hold it")

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def file_of(self, name: str) -> str:
        return self._owner[name].path.name

    def listing(self, copies: Collection[str] = ()) -> dict[str, tuple[str, str]]:
        """Tensor → file and dtype in which an export brings it back.

        Pickles become the safetensors files that `transformers` would write in their place, which do not repeat the
        tied tensors named in `copies`.
        """
        listed = {}
        for name, reader in self._owner.items():
            file = _as_safetensors(reader.path.name)
            repeats = name in copies and file != reader.path.name
            if not repeats and not name.endswith(IGNORED_SUFFIX):
                listed[name] = (file, reader.dtype(name))
        return listed

    def headers(self) -> dict[str, str]:
        """File → its header, where another program than the safetensors library laid it out."""
        members: dict[SafetensorsReader, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
        for name, reader in self._owner.items():
            if isinstance(reader, SafetensorsReader):
                members.setdefault(reader, {})[name] = (TORCH_DTYPES[reader.dtype(name)], reader.shape(name))
        return {
            reader.path.name: reader.header
            for reader, tensors in members.items()
            if reader.header != plain_header(tensors)
        }

    def shape(self, name: str) -> tuple[int, ...]:
        return self._owner[name].shape(name)

    def dtype(self, name: str) -> str:
        return self._owner[name].dtype(name)

    def read(self, name: str) -> torch.Tensor:
        return self._owner[name].read(name)

    def piece_dtype(self, piece: Piece) -> torch.dtype:
        return TORCH_DTYPES[self.dtype(piece.names[0])]

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        return [self.read(name) for name in piece.names]


def _as_safetensors(file: str) -> str:
    if not file.endswith(PICKLE_SUFFIX):
        return file
    return file.replace("pytorch_model", "model").removesuffix(PICKLE_SUFFIX) + ".safetensors"


def check_tensors(weights: HfWeights, family: Family, model_shape: ModelShape) -> None:
    """Every tensor of the architecture is there in the expected shape and a float dtype, and no other tensor is."""
    expected: set[str] = set()
    for piece in family.pieces(model_shape):
        for name, shape in zip(piece.names, piece.part_shapes, strict=True):
            expected.add(name)
            if name not in weights:
                raise InputError(f"tensor {name} is missing; its shape would be {list(shape)}")
            found = weights.shape(name)
            if found != shape:
                raise InputError(f"tensor {name} in {weights.file_of(name)} has shape {list(found)}, not {list(shape)}")
            if weights.dtype(name) not in TORCH_DTYPES:
                raise InputError(
                    f"tensor {name} in {weights.file_of(name)} has dtype {weights.dtype(name)}; only "
                    f"{', '.join(TORCH_DTYPES)} are weights that can be trained"
                )
        if len({weights.dtype(name) for name in piece.names}) > 1:
            raise InputError(f"tensors {', '.join(piece.names)} have different dtypes")
    for copy, name in family.copies(model_shape).items():
        if copy in weights and not torch.equal(weights.read(copy), weights.read(name)):
            raise InputError(f"config.json ties {copy} to {name}, but the two tensors differ")
        expected.add(copy)
    extra = sorted(name for name in set(weights) - expected if not name.endswith(IGNORED_SUFFIX))
    if extra:
        others = f" and {len(extra) - 1} more" if extra[1:] else ""
        raise InputError(
            f"there is no place in {family.architecture} for tensor {extra[0]}{others}; is this an adapter, or a model "
            "with changed layers?"
        )
