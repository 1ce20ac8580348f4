"""Which tensors an exported model has, in which file and dtype: those of the model that was imported, where known."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import read_model_json

from .families.family import Family
from .huggingface.config import DTYPES
from .huggingface.directory import INDEX, SINGLE, HfDirectory
from .huggingface.safetensors_file import TORCH_DTYPES
from .huggingface.weights import HfWeights
from .nemo_checkpoint.context import HEADERS, WEIGHT_LIST

DEFAULT_FILE_BYTES = 5_000_000_000
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Target:
    """One tensor to write, and the file it goes to."""

    name: str
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_targets(origin: HfDirectory, family: Family, model_shape: ModelShape, dtype: str | None) -> dict[str, Target]:
    """Every tensor to write, by name: the files and dtypes of the original where they are known."""
    known = _original_weights(origin)
    fallback = TORCH_DTYPES[DTYPES[origin.config.stored_dtype]]
    shapes: dict[str, tuple[int, ...]] = {}
    for piece in family.pieces(model_shape):
        shapes.update(zip(piece.names, piece.part_shapes, strict=True))
    for copy, name in family.copies(model_shape).items():
        if copy in known:
            shapes[copy] = shapes[name]
    targets = []
    for name, shape in shapes.items():
        file, original = known.get(name, (SINGLE, None))
        chosen = TORCH_DTYPES[DTYPES[dtype]] if dtype else TORCH_DTYPES.get(original or "", fallback)
        targets.append(Target(name, file, chosen, shape))
    if not set(shapes) <= set(known):
        targets = _split_files(targets)
    return {target.name: target for target in targets}


def _original_weights(origin: HfDirectory) -> dict[str, tuple[str, str]]:
    """Tensor → (file, safetensors dtype) in the Hugging Face directory that the model came from, if known."""
    listed = origin.path / WEIGHT_LIST
    if listed.is_file():
        return _read_weight_list(listed)
    if not _has_weights(origin):
        return {}
    return HfWeights(origin).listing()


def original_headers(origin: HfDirectory) -> dict[str, str]:
    """File → safetensors header in the directory that the model came from, where it is not the library's own."""
    kept = origin.path / HEADERS
    if kept.is_file():
        return {file: text for file, text in read_model_json(kept).items() if isinstance(text, str)}
    if (origin.path / WEIGHT_LIST).is_file() or not _has_weights(origin):
        return {}
    return HfWeights(origin).headers()


def _has_weights(origin: HfDirectory) -> bool:
    return (origin.path / INDEX).is_file() or (origin.path / SINGLE).is_file()


def _read_weight_list(path: Path) -> dict[str, tuple[str, str]]:
    """Files are to be written under these names, so they may not lead out of the directory."""
    weights = {}
    for name, entry in read_model_json(path).items():
        match entry:
            case {"file": str(file), "dtype": str(dtype)} if _is_file_name(file) and dtype in TORCH_DTYPES:
                weights[name] = (file, dtype)
            case _:
                raise InputError(f"{path} has {entry} for {name}, which is no file and dtype; import the model again")
    return weights


def _is_file_name(file: str) -> bool:
    return Path(file).name == file and file.endswith(SUFFIX)


def _split_files(targets: list[Target]) -> list[Target]:
    """Spread tensors over files of at most DEFAULT_FILE_BYTES, named as `transformers` does."""
    files: list[list[Target]] = [[]]
    used = 0
    for target in targets:
        if used and used + target.size > DEFAULT_FILE_BYTES:
            files.append([])
            used = 0
        files[-1].append(target)
        used += target.size
    if len(files) == 1:
        return [replace(target, file=SINGLE) for target in targets]
    return [
        replace(target, file=f"model-{number:05d}-of-{len(files):05d}.safetensors")
        for number, members in enumerate(files, start=1)
        for target in members
    ]
