"""NeMo checkpoint → Hugging Face directory. Needs neither NeMo nor a GPU; reads model tensors only, no optimizer state.

Accepts what `longpo convert import` wrote and every checkpoint trained from it, under whatever parallel sizes.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .checkpoint.context import WEIGHT_LIST
from .checkpoint.nemo_checkpoint import NemoCheckpoint
from .families.family import Family
from .families.layouts import Geometry
from .huggingface.config import with_dtype
from .huggingface.directory import INDEX, SINGLE, HfDirectory, read_json, write_json
from .huggingface.rope import with_max_length
from .huggingface.safetensors_file import SafetensorsWriter
from .outputs import new_directory, require_free
from .sources import Weights
from .targets import Target, plan_targets


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str | None = None,
    max_length: int | None = None,
    base: Path | None = None,
    base_checkpoint: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a NeMo checkpoint directory to a Hugging Face one.

    Everything but the weights comes from the model that was imported (kept in `context/hf`), or from `base`. The rotary
    base and its scaling are those the NeMo model was trained with. Tensors get the dtype they had before the import, or
    `dtype` (float32, bfloat16, float16). LoRA adapters are added to the weights that they were trained on, those of
    `base_checkpoint` or else of the checkpoint that they name. Peak memory: a few times the largest tensor.
    """
    require_free(output, overwrite=overwrite)
    source = NemoCheckpoint.open(checkpoint, base, base_checkpoint)
    where = str(source.origin.path / "config.json")
    family, geometry = source.family, source.geometry
    config = source.config
    if max_length is not None:
        config = with_max_length(config, max_length, where)
    if dtype is not None:
        config = with_dtype(config, dtype)
    targets = plan_targets(source.origin, family, geometry, dtype)
    with new_directory(output, overwrite=overwrite) as partial:
        _write_companions(partial, source.origin, config)
        _write_weights(partial, source.weights, targets, family, geometry)
        _write_index(partial, source.origin, targets)
    return output


def _write_companions(output: Path, origin: HfDirectory, config: Mapping[str, Any]) -> None:
    for path in origin.companions():
        if path.name not in (WEIGHT_LIST, INDEX):
            shutil.copyfile(path, output / path.name)
    if config != origin.config:
        write_json(output / "config.json", config)


def _write_weights(
    output: Path, weights: Weights, targets: Mapping[str, Target], family: Family, geometry: Geometry
) -> None:
    files = {
        file: SafetensorsWriter(output / file, {t.name: (t.dtype, t.shape) for t in targets.values() if t.file == file})
        for file in dict.fromkeys(target.file for target in targets.values())
    }
    copies = {name: copy for copy, name in family.copies(geometry).items() if copy in targets}
    with tqdm(total=len(targets), desc="export", unit="tensor") as bar:
        for piece in family.pieces(geometry):
            for name, tensor in zip(piece.names, weights.parts(piece), strict=True):
                for written in filter(None, (name, copies.get(name))):
                    files[targets[written].file].write(written, tensor)
                    bar.update()


def _write_index(output: Path, origin: HfDirectory, targets: Mapping[str, Target]) -> None:
    """The index of a model in several files; the original's bytes when nothing in it changed."""
    weight_map = {name: target.file for name, target in targets.items()}
    if set(weight_map.values()) == {SINGLE}:
        return
    total = sum(target.size for target in targets.values())
    original = origin.path / INDEX
    if original.is_file():
        content = read_json(original)
        if content.get("weight_map") == weight_map and content.get("metadata", {}).get("total_size") == total:
            shutil.copyfile(original, output / INDEX)
            return
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
