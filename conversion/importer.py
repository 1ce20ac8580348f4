"""Hugging Face directory → NeMo checkpoint, streaming: no model is built, no GPU and no trainer are needed."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from nemo_longpo.errors import InputError

from . import dist_checkpoint, hf_config, nemo_context
from .dist_checkpoint import Chunk
from .families import EXTRA_STATE_OWNERS, IGNORED_SUFFIX, KEY_PREFIX, Entry, Family, family_of
from .hf_dir import TORCH_DTYPES, HfDirectory, HfWeights, write_json
from .hf_rope import ScalingChoice
from .layouts import Geometry, join
from .outputs import new_directory, require_free


def import_checkpoint(
    model: Path,
    output: Path,
    *,
    rope_theta: float | None = None,
    rope_scaling: ScalingChoice | None = None,
    max_length: int | None = None,
    full_attention: bool = False,
    overwrite: bool = False,
) -> Path:
    """Convert a Hugging Face directory to a NeMo checkpoint directory (`weights/` and `context/`).

    The weights keep their dtype and bits. `rope_theta`, `rope_scaling` and `max_length` set the policy's rotary base,
    its scaling and the number of positions; all stay with the checkpoint and come out again on export. A new base under
    an old scaling needs a decision about the scaling. Raises InputError before anything is written when the input
    cannot be converted.
    """
    require_free(output, overwrite=overwrite)
    source = HfDirectory.open(model)
    where = str(source.path / "config.json")
    family = family_of(source.config, where)
    config = hf_config.for_import(
        source.config,
        where,
        theta=rope_theta,
        scaling=rope_scaling,
        max_length=max_length,
        full_attention=full_attention,
    )
    source.require_tokenizer()
    geometry = Geometry.from_config(config)
    with HfWeights(source) as weights:
        check_tensors(weights, family, geometry)
        chunks = plan_chunks(weights, family, geometry)
        with new_directory(output, overwrite=overwrite) as partial_output:
            _write_context(partial_output / "context", source, config, family, weights)
            with tqdm(total=len(chunks), desc="import", unit="tensor") as bar:
                dist_checkpoint.write(partial_output / "weights", chunks, extra_states(geometry), bar.update)
    return output


def check_tensors(weights: HfWeights, family: Family, geometry: Geometry) -> None:
    """Every tensor of the architecture is there in the expected shape and a float dtype, and no other tensor is."""
    expected: set[str] = set()
    for entry, layer in family.tensors(geometry):
        for name, shape in zip(entry.names(layer), entry.shapes(geometry), strict=True):
            expected.add(name)
            if name not in weights:
                raise InputError(f"tensor {name} is missing; its shape would be {list(shape)}")
            found = weights.shape(name)
            if found != shape:
                raise InputError(f"tensor {name} in {weights.file_of(name)} has shape {list(found)}, not {list(shape)}")
            if weights.dtype(name) not in TORCH_DTYPES:
                raise InputError(f"tensor {name} in {weights.file_of(name)} has dtype {weights.dtype(name)}")
        if len({weights.dtype(name) for name in entry.names(layer)}) > 1:
            raise InputError(f"tensors {', '.join(entry.names(layer))} have different dtypes")
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


def plan_chunks(weights: HfWeights, family: Family, geometry: Geometry) -> list[Chunk]:
    """One chunk per Megatron tensor and layer, each read from the Hugging Face files when it is written."""
    return [_chunk(weights, entry, layer, geometry) for entry, layer in family.tensors(geometry)]


def _chunk(weights: HfWeights, entry: Entry, layer: int | None, geometry: Geometry) -> Chunk:
    names = entry.names(layer)
    shape = entry.shape(geometry)
    dtype = TORCH_DTYPES[weights.dtype(names[0])]
    load = partial(_load, weights, entry, names, geometry)
    key = KEY_PREFIX + entry.key
    if layer is None:
        return Chunk(key, shape, (0,) * len(shape), shape, dtype, load)
    return Chunk(key, (geometry.layers, *shape), (layer, *(0 for _ in shape)), (1, *shape), dtype, load)


def _load(weights: HfWeights, entry: Entry, names: list[str], geometry: Geometry) -> torch.Tensor:
    return join(entry.layout, [weights.read(name) for name in names], geometry)


def extra_states(geometry: Geometry) -> dict[str, object]:
    """Megatron's unique keys (`name/shard_{offset}_{shape}`) of the empty objects that Transformer Engine asks for."""
    states: dict[str, object] = {}
    for owner in EXTRA_STATE_OWNERS:
        count = geometry.layers if ".layers." in owner else 1
        for index in range(count):
            states[f"{KEY_PREFIX}{owner}._extra_state/shard_{index}_{count}"] = dist_checkpoint.empty_extra_state()
    return states


def _write_context(
    context: Path, source: HfDirectory, config: Mapping[str, Any], family: Family, weights: HfWeights
) -> None:
    with TemporaryDirectory() as scratch:
        artifacts = Path(scratch) / nemo_context.ARTIFACTS
        artifacts.mkdir()
        source.copy_companions(artifacts)
        if config != source.config:
            write_json(artifacts / "config.json", config)
        nemo_context.write_weight_list(
            artifacts,
            {
                name: (weights.file_of(name), weights.dtype(name))
                for name in weights
                if not name.endswith(IGNORED_SUFFIX)
            },
        )
        nemo_context.write_context(context, family, config, artifacts)
