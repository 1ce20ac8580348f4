"""Checkpoint → Hugging Face directory. Needs no trainer and no GPU; reads model tensors only, no optimizer state.

Accepts checkpoints that `longpo convert import`, stock NeMo or Megatron-Bridge made, and checkpoints trained from them
under any parallel sizes. The new files have the tensors, names and dtypes of the imported model, where these are known.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from nemo_longpo.checkpoints.run_directory import find_checkpoint, find_checkpoints
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.live_status import StatusFile
from nemo_longpo.model_directory import downloads, model_config
from nemo_longpo.terminal import note

from . import outputs, progress, tensor_values
from .families.family import Family, Piece
from .huggingface import directory, tensor_files
from .huggingface.config import DTYPES, with_dtype, with_max_length
from .huggingface.weights import HfWeights
from .model_on_disk import Access, ModelOnDisk, Weights, open_checkpoint
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
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str | None = None,
    max_length: int | None = None,
    base: Path | None = None,
    base_checkpoint: Path | None = None,
    check_hashes: bool = True,
    overwrite: bool = False,
    workers: int = progress.DEFAULT_WORKERS,
) -> Path:
    """Convert a checkpoint, or the newest complete one of a run's directory, to a Hugging Face directory.

    Everything but the weights comes from the model that was imported (kept in `hf/`), or from `base`. The rotary base
    and its scaling are those that the model was trained with. Tensors get the dtype they had before the import, or
    `dtype` (float32, bfloat16, float16). LoRA adapters are added to the weights that they were trained on, those of
    `base_checkpoint` or else of the checkpoint that they name. Files are held to their record: sizes, and with
    `check_hashes` hashes. Peak memory: a few times the largest tensor per worker.
    """
    given, checkpoint = checkpoint, find_checkpoint(checkpoint)
    if checkpoint != given:
        note(f"export: takes {checkpoint}, the newest complete checkpoint of {given}")
    outputs.require_apart(output, *filter(None, (checkpoint, base)))
    outputs.require_free(output, overwrite=overwrite)
    access = Access(base=base, base_checkpoint=base_checkpoint, check_hashes=check_hashes)
    with progress.Parts(output, f"export of {checkpoint.name}") as parts:
        parts.start("hold the checkpoint to its record")
        source = open_checkpoint(checkpoint, access)
        _export(source, output, parts, dtype=dtype, max_length=max_length, overwrite=overwrite, workers=workers)
    return output


def export_every(run: Path, output: Path, *, overwrite: bool = False, **options: Any) -> list[Path]:
    """Export every complete checkpoint of a run, as `export_checkpoint` does, each to a directory of its name.

    Raises InputError, before the first one, if the run has none or one of the directories in `output` is taken.
    """
    places = {output / checkpoint.name: checkpoint for checkpoint in find_checkpoints(run)}
    for place in places:
        outputs.require_free(place, overwrite=overwrite)
    output.mkdir(parents=True, exist_ok=True)
    inside = [place.name for place in places]
    with StatusFile(
        output, f"exports of {run.name}", kept=False, total=len(places), unit="model", inside=inside
    ) as own:
        for number, (place, checkpoint) in enumerate(places.items()):
            own.update(done=number, doing=f"export {checkpoint.name}", now=True)
            export_checkpoint(checkpoint, place, overwrite=overwrite, **options)
    return list(places)


def _export(
    source: ModelOnDisk,
    output: Path,
    parts: progress.Parts,
    *,
    dtype: str | None,
    max_length: int | None,
    overwrite: bool,
    workers: int,
) -> None:
    outputs.require_apart(output, source.weights.whole)  # adapters know their base without an option
    family, model_shape = source.family, source.model_shape
    config = source.config
    if max_length is not None:
        config = with_max_length(config, max_length)
    elif config.max_position_embeddings is None:
        raise InputError(f"{config.file} does not say for how many positions the model is; pass --max-length")
    if dtype is not None:
        config = with_dtype(config, dtype)
    if source.origin.remark:
        note(f"export: {source.origin.remark}")
    if not config.rope_is_read_by_4:
        note(
            "export: config.json has its RoPE settings in rope_parameters, as the original has; transformers 5 and "
            "vLLM read them there, transformers 4 overlooks them"
        )
    targets = plan_targets(source.origin, family, model_shape, dtype)
    size = sum(target.size for target in targets.values()) + outputs.bytes_of(source.origin.companions())
    with outputs.new_model(output, overwrite=overwrite, size=size) as partial:
        _write_companions(partial, source.origin, config)
        files = lay_out(partial, targets, original_headers(source.origin))
        advance = parts.start("write the weights", sum(target.size for target in targets.values()))
        write_weights(files, source.weights, targets, family, model_shape, workers, advance)
        _write_index(partial, source.origin, targets, dtype)
        parts.start("wait for the disk")


def _write_companions(output: Path, origin: directory.HfDirectory, config: model_config.ModelConfig) -> None:
    for path in origin.companions():
        if path.name not in (WEIGHT_LIST, HEADERS, directory.INDEX):
            shutil.copyfile(path, output / path.name)
    if config != origin.config or origin.remark:
        directory.write_json(output / "config.json", config.raw)


def write_weights(
    files: Mapping[str, tensor_files.SafetensorsWriter],
    weights: Weights,
    targets: Mapping[str, Target],
    family: Family,
    model_shape: ModelShape,
    workers: int,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    copies = family.copies(model_shape)
    not_finite = tensor_values.NotFinite()
    places: dict[str, list[Target]] = {}
    for target in targets.values():
        places.setdefault(copies.get(target.name, target.name), []).append(target)

    def convert(piece: Piece) -> int:
        size = 0
        for name, tensor in zip(piece.names, weights.parts(piece), strict=True):
            not_finite.look_at(name, tensor)
            for target in places[name]:
                files[target.file].write(target.name, tensor)
                size += target.size
        return size

    total = sum(target.size for target in targets.values())
    pieces = family.pieces(model_shape)
    progress.work_through(pieces, convert, title="export", total=total, workers=workers, advance=advance)
    if not_finite.names:
        note(f"export: {not_finite}")


def lay_out(
    output: Path, targets: Mapping[str, Target], headers: Mapping[str, str] = MappingProxyType({})
) -> dict[str, tensor_files.SafetensorsWriter]:
    """Open the files, with a place for every tensor: that of the original `headers` if they list the same tensors."""
    members: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
    for target in targets.values():
        members.setdefault(target.file, {})[target.name] = (target.dtype, target.shape)
    files = {}
    for file, tensors in members.items():
        header = tensor_files.header_like(headers[file], tensors, f"{HEADERS}, {file}") if file in headers else None
        files[file] = tensor_files.SafetensorsWriter(output / file, tensors, header)
    return files


def _write_index(output: Path, origin: directory.HfDirectory, targets: Mapping[str, Target], dtype: str | None) -> None:
    """Write the index of a model in several files: a copy of the original, with new values where they changed."""
    weight_map = {name: target.file for name, target in targets.items()}
    if set(weight_map.values()) == {directory.SINGLE}:
        return
    total = sum(target.size for target in targets.values())
    original = origin.path / directory.INDEX
    content = downloads.read_model_json(original) if original.is_file() else {}
    metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if content.get("weight_map") == weight_map:
        if dtype is None or metadata.get("total_size") == total:
            shutil.copyfile(original, output / directory.INDEX)
            return
        weight_map = content["weight_map"]
    else:
        weight_map = dict(sorted(weight_map.items()))
    index = {**content, "metadata": {**metadata, "total_size": total}, "weight_map": weight_map}
    (output / directory.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_targets(
    origin: directory.HfDirectory, family: Family, model_shape: ModelShape, dtype: str | None
) -> dict[str, Target]:
    """Every tensor to write, by name: the files and dtypes of the original where they are known."""
    known = _original_weights(origin)
    torch_dtypes = tensor_files.TORCH_DTYPES
    fallback = torch_dtypes[DTYPES[origin.config.stored_dtype]]
    shapes: dict[str, tuple[int, ...]] = {}
    for piece in family.pieces(model_shape):
        shapes.update(zip(piece.names, piece.part_shapes, strict=True))
    for copy, name in family.copies(model_shape).items():
        if copy in known:
            shapes[copy] = shapes[name]
    targets = []
    for name, shape in shapes.items():
        file, original = known.get(name, (directory.SINGLE, None))
        chosen = torch_dtypes[DTYPES[dtype]] if dtype else torch_dtypes.get(original or "", fallback)
        targets.append(Target(name, file, chosen, shape))
    if not set(shapes) <= set(known):
        targets = _split_files(targets)
    return {target.name: target for target in targets}


def _original_weights(origin: directory.HfDirectory) -> dict[str, tuple[str, str]]:
    """Tensor → (file, safetensors dtype) in the original Hugging Face directory, if known."""
    listed = origin.path / WEIGHT_LIST
    if listed.is_file():
        return _read_weight_list(listed)
    if not _has_weights(origin):
        return {}
    return HfWeights(origin).listing()


def original_headers(origin: directory.HfDirectory) -> dict[str, str]:
    """File → safetensors header in the original directory, if another program than the library wrote it."""
    kept = origin.path / HEADERS
    if kept.is_file():
        return {file: text for file, text in downloads.read_model_json(kept).items() if isinstance(text, str)}
    if (origin.path / WEIGHT_LIST).is_file() or not _has_weights(origin):
        return {}
    return HfWeights(origin).headers()


def _has_weights(origin: directory.HfDirectory) -> bool:
    return (origin.path / directory.INDEX).is_file() or (origin.path / directory.SINGLE).is_file()


def _read_weight_list(path: Path) -> dict[str, tuple[str, str]]:
    """Read WEIGHT_LIST. Raises InputError if a file name leads out of the directory or a dtype is unknown."""
    weights = {}
    for name, entry in downloads.read_model_json(path).items():
        match entry:
            case {"file": str(file), "dtype": str(dtype)} if _is_file_name(file) and dtype in tensor_files.TORCH_DTYPES:
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
        return [replace(target, file=directory.SINGLE) for target in targets]
    return [
        replace(target, file=f"model-{number:05d}-of-{len(files):05d}.safetensors")
        for number, members in enumerate(files, start=1)
        for target in members
    ]
