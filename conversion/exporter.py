"""NeMo checkpoint → Hugging Face directory. Needs neither NeMo nor a GPU; reads model tensors only, no optimizer state.

Accepts what `longpo convert import` or stock NeMo made and every checkpoint trained from it, under whatever parallel
sizes.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.downloads import read_model_json
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.terminal import note

from .families.family import Family, Piece
from .huggingface.config import with_dtype, with_max_length
from .huggingface.directory import INDEX, SINGLE, HfDirectory, write_json
from .huggingface.safetensors_file import SafetensorsWriter, header_like
from .model_on_disk import Weights
from .nemo_checkpoint.context import HEADERS, WEIGHT_LIST
from .nemo_checkpoint.opened import NemoCheckpoint
from .nemo_checkpoint.stock import StockOrigin
from .outputs import bytes_of, new_model, require_apart, require_free
from .progress import DEFAULT_WORKERS, work_through
from .targets import Target, original_headers, plan_targets
from .values import NotFinite


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
    workers: int = DEFAULT_WORKERS,
) -> Path:
    """Convert a NeMo checkpoint, or the newest complete one of a run's directory, to a Hugging Face directory.

    Everything but the weights comes from the model that was imported (kept in `context/hf`), or from `base`. The rotary
    base and its scaling are those the NeMo model was trained with. Tensors get the dtype they had before the import, or
    `dtype` (float32, bfloat16, float16). LoRA adapters are added to the weights that they were trained on, those of
    `base_checkpoint` or else of the checkpoint that they name. Files are held to their record: sizes, and with
    `check_hashes` hashes. Peak memory: a few times the largest tensor per worker.
    """
    given, checkpoint = checkpoint, find_checkpoint(checkpoint)
    if checkpoint != given:
        note(f"export: takes {checkpoint}, the newest complete checkpoint of {given}")
    require_apart(output, *filter(None, (checkpoint, base)))
    require_free(output, overwrite=overwrite)
    source = NemoCheckpoint.open(checkpoint, base, base_checkpoint, check_hashes=check_hashes)
    require_apart(output, source.weights.directory.parent)  # adapters know their base without an option
    family, model_shape = source.family, source.model_shape
    config = source.config
    if max_length is not None:
        config = with_max_length(config, max_length)
    elif config.max_position_embeddings is None:
        raise InputError(f"{config.file} does not say for how many positions the model is; pass --max-length")
    if dtype is not None:
        config = with_dtype(config, dtype)
    if isinstance(source.origin, StockOrigin):
        note(f"export: {source.origin.remark}")
    if not config.rope_is_read_by_4:
        note(
            "export: config.json has its RoPE settings in rope_parameters, as the original has; transformers 5 and "
            "vLLM read them there, transformers 4 overlooks them"
        )
    targets = plan_targets(source.origin, family, model_shape, dtype)
    size = sum(target.size for target in targets.values()) + bytes_of(source.origin.companions())
    with new_model(output, overwrite=overwrite, size=size) as partial:
        _write_companions(partial, source.origin, config)
        files = lay_out(partial, targets, original_headers(source.origin))
        write_weights(files, source.weights, targets, family, model_shape, workers)
        _write_index(partial, source.origin, targets, dtype)
    return output


def _write_companions(output: Path, origin: HfDirectory, config: ModelConfig) -> None:
    for path in origin.companions():
        if path.name not in (WEIGHT_LIST, HEADERS, INDEX):
            shutil.copyfile(path, output / path.name)
    if config != origin.config or isinstance(origin, StockOrigin):
        write_json(output / "config.json", config.raw)


def write_weights(
    files: Mapping[str, SafetensorsWriter],
    weights: Weights,
    targets: Mapping[str, Target],
    family: Family,
    model_shape: ModelShape,
    workers: int,
) -> None:
    copies = family.copies(model_shape)
    not_finite = NotFinite()
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
    work_through(family.pieces(model_shape), convert, title="export", total=total, workers=workers)
    if not_finite.names:
        note(f"export: {not_finite}")


def lay_out(
    output: Path, targets: Mapping[str, Target], headers: Mapping[str, str] = MappingProxyType({})
) -> dict[str, SafetensorsWriter]:
    """The files, with a place for every tensor: that in the original `headers`, where they are of the same tensors."""
    members: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
    for target in targets.values():
        members.setdefault(target.file, {})[target.name] = (target.dtype, target.shape)
    files = {}
    for file, tensors in members.items():
        header = header_like(headers[file], tensors, f"{HEADERS}, {file}") if file in headers else None
        files[file] = SafetensorsWriter(output / file, tensors, header)
    return files


def _write_index(output: Path, origin: HfDirectory, targets: Mapping[str, Target], dtype: str | None) -> None:
    """The index of a model in several files: the original's bytes, or, where sizes or tensors changed, its fields."""
    weight_map = {name: target.file for name, target in targets.items()}
    if set(weight_map.values()) == {SINGLE}:
        return
    total = sum(target.size for target in targets.values())
    original = origin.path / INDEX
    content = read_model_json(original) if original.is_file() else {}
    metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if content.get("weight_map") == weight_map:
        if dtype is None or metadata.get("total_size") == total:
            shutil.copyfile(original, output / INDEX)
            return
        weight_map = content["weight_map"]
    else:
        weight_map = dict(sorted(weight_map.items()))
    index = {**content, "metadata": {**metadata, "total_size": total}, "weight_map": weight_map}
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
