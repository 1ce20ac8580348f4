"""NeMo checkpoint → Hugging Face directory. Needs neither NeMo nor a GPU; reads model tensors only, no optimizer state.

Accepts what `longpo convert import` wrote and every checkpoint trained from it, under whatever parallel sizes.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from nemo_longpo.attention.rope_config import parse_scaling, scaling_of
from nemo_longpo.errors import InputError

from . import hf_config, nemo_context
from .dist_checkpoint import DistCheckpoint
from .families import KEY_PREFIX, Family, family_of
from .hf_dir import INDEX, SINGLE, HfDirectory, read_json, write_json
from .hf_rope import with_max_length, with_rope_scaling, with_rope_theta
from .layouts import Geometry, split
from .outputs import new_directory, require_free
from .targets import Target, plan_targets


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str | None = None,
    max_length: int | None = None,
    base: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a NeMo checkpoint directory to a Hugging Face one.

    Everything but the weights comes from the model that was imported (kept in `context/hf`), or from `base`. The rotary
    base and its scaling are those the NeMo model was trained with. Tensors get the dtype they had before the import, or
    `dtype` (float32, bfloat16, float16). Peak memory: one output file plus one tensor.
    """
    require_free(output, overwrite=overwrite)
    model = nemo_context.read_model(checkpoint / "context")
    origin = _origin(checkpoint, base)
    where = str(origin.path / "config.json")
    family = family_of(origin.config, where)
    hf_config.check_supported(origin.config, where)
    config = _exported_config(origin.config, where, model, dtype, max_length)
    geometry = Geometry.from_config(config)
    source = DistCheckpoint(checkpoint / "weights")
    _check_shapes(source, family, geometry)
    targets = plan_targets(origin, family, geometry, dtype)
    with new_directory(output, overwrite=overwrite) as partial:
        _write_companions(partial, origin, config)
        _write_weights(partial, source, targets, geometry)
        _write_index(partial, origin, targets)
    return output


def _origin(checkpoint: Path, base: Path | None) -> HfDirectory:
    if base is not None:
        return HfDirectory.open(base)
    kept = checkpoint / "context" / nemo_context.ARTIFACTS
    if not (kept / "config.json").is_file():
        raise InputError(
            f"{kept} does not hold the imported model's files; pass --base with the Hugging Face directory that this "
            "checkpoint was made from"
        )
    return HfDirectory.open(kept)


def _exported_config(
    config: Mapping[str, Any], where: str, model: Mapping[str, Any], dtype: str | None, max_length: int | None
) -> dict[str, Any]:
    changed = with_rope_theta(config, model["config"]["rotary_base"])
    # Our training records the scaling; a checkpoint that was only imported has that of its config.json.
    if "rope_scaling" in model and parse_scaling(model["rope_scaling"], where) != scaling_of(config, where):
        changed = with_rope_scaling(changed, model["rope_scaling"])
    if max_length is not None:
        changed = with_max_length(changed, max_length, where)
    return hf_config.with_dtype(changed, dtype) if dtype else changed


def _check_shapes(source: DistCheckpoint, family: Family, geometry: Geometry) -> None:
    """The checkpoint is of this architecture. Vocabulary rows may exceed the model's: tensor parallelism pads them."""
    for entry in {entry.key: entry for entry, _ in family.tensors(geometry)}.values():
        shape = entry.shape(geometry)
        expected = (geometry.layers, *shape) if entry.stacked else shape
        found = source.shape(KEY_PREFIX + entry.key)
        padded = entry.is_vocabulary and found[1:] == expected[1:] and found[0] >= expected[0]
        if found != expected and not padded:
            raise InputError(
                f"{source.directory}: {KEY_PREFIX + entry.key} has shape {list(found)}, the model's config.json says "
                f"{list(expected)}; the checkpoint is of another model"
            )


def _write_companions(output: Path, origin: HfDirectory, config: Mapping[str, Any]) -> None:
    for path in origin.companions():
        if path.name not in (nemo_context.WEIGHT_LIST, INDEX):
            shutil.copyfile(path, output / path.name)
    if config != origin.config:
        write_json(output / "config.json", config)


def _write_weights(output: Path, source: DistCheckpoint, targets: list[Target], geometry: Geometry) -> None:
    files = {name: [target for target in targets if target.file == name] for name in {t.file: None for t in targets}}
    with tqdm(total=len(targets), desc="export", unit="tensor") as bar:
        for file, members in files.items():
            tensors = {}
            for name, tensor in _read_targets(source, members, geometry):
                tensors[name] = tensor
                bar.update()
            save_file(tensors, output / file, metadata={"format": "pt"})


def _read_targets(
    source: DistCheckpoint, targets: list[Target], geometry: Geometry
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by name; a Megatron tensor with several parts in the same file is read once."""
    wanted: dict[tuple[str, int | None], list[Target]] = {}
    for target in targets:
        wanted.setdefault((target.entry.key, target.layer), []).append(target)
    for group in wanted.values():
        entry, layer = group[0].entry, group[0].layer
        shape = entry.shape(geometry)
        offsets, sizes = ((0,) * len(shape), shape) if layer is None else ((layer, *(0 for _ in shape)), (1, *shape))
        tensor = source.read(KEY_PREFIX + entry.key, offsets, sizes).reshape(shape)
        parts = split(entry.layout, tensor, [part[0] for part in entry.shapes(geometry)], geometry)
        for target in group:
            # A tied model saved with both names needs two storages: safetensors refuses shared memory.
            yield target.name, parts[target.part].to(target.dtype, copy=len(group) > len(parts))


def _write_index(output: Path, origin: HfDirectory, targets: list[Target]) -> None:
    """The index of a model in several files; the original's bytes when nothing in it changed."""
    weight_map = {target.name: target.file for target in targets}
    if set(weight_map.values()) == {SINGLE}:
        return
    total = 0
    for file in set(weight_map.values()):
        with (output / file).open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        total += (output / file).stat().st_size - 8 - header
    original = origin.path / INDEX
    if original.is_file():
        content = read_json(original)
        if content.get("weight_map") == weight_map and content.get("metadata", {}).get("total_size") == total:
            shutil.copyfile(original, output / INDEX)
            return
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
