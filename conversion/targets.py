"""Which tensors an exported model has, in which file and dtype: those of the model that was imported, where known."""

from dataclasses import dataclass, replace

import torch

from . import hf_config, nemo_context
from .families import Entry, Family
from .hf_dir import INDEX, SINGLE, TORCH_DTYPES, HfDirectory, HfWeights, read_json
from .layouts import Geometry

DEFAULT_FILE_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Target:
    """One tensor to write: its file and dtype, and part `part` of the Megatron tensor `entry` of `layer`."""

    name: str
    file: str
    dtype: torch.dtype
    entry: Entry
    layer: int | None
    part: int


def plan_targets(origin: HfDirectory, family: Family, geometry: Geometry, dtype: str | None) -> list[Target]:
    """Every tensor to write with its file: the files and dtypes of the original where they are known."""
    known = _original_weights(origin)
    fallback = TORCH_DTYPES[hf_config.DTYPES[hf_config.dtype(origin.config)]]
    places: dict[str, tuple[Entry, int | None, int]] = {}
    for entry, layer in family.tensors(geometry):
        places.update({name: (entry, layer, part) for part, name in enumerate(entry.names(layer))})
    for copy, name in family.copies(geometry).items():
        if copy in known:
            places[copy] = places[name]
    targets = []
    for name, place in places.items():
        file, original = known.get(name, (SINGLE, None))
        chosen = TORCH_DTYPES[hf_config.DTYPES[dtype]] if dtype else TORCH_DTYPES.get(original or "", fallback)
        targets.append(Target(name, file, chosen, *place))
    return targets if set(places) <= set(known) else _split_files(targets, geometry)


def _original_weights(origin: HfDirectory) -> dict[str, tuple[str, str]]:
    """Tensor → (file, safetensors dtype) in the Hugging Face directory that the model came from, if known."""
    listed = origin.path / nemo_context.WEIGHT_LIST
    if listed.is_file():
        return {name: (value["file"], value["dtype"]) for name, value in read_json(listed).items()}
    if not (origin.path / INDEX).is_file() and not (origin.path / SINGLE).is_file():
        return {}
    with HfWeights(origin) as weights:
        return {name: (weights.file_of(name), weights.dtype(name)) for name in weights}


def _split_files(targets: list[Target], geometry: Geometry) -> list[Target]:
    """Spread tensors over files of at most DEFAULT_FILE_BYTES, named as `transformers` does."""
    files: list[list[Target]] = [[]]
    used = 0
    for target in targets:
        size = target.entry.numel(target.part, geometry) * target.dtype.itemsize
        if used and used + size > DEFAULT_FILE_BYTES:
            files.append([])
            used = 0
        files[-1].append(target)
        used += size
    if len(files) == 1:
        return [replace(target, file=SINGLE) for target in targets]
    return [
        replace(target, file=f"model-{number:05d}-of-{len(files):05d}.safetensors")
        for number, members in enumerate(files, start=1)
        for target in members
    ]
