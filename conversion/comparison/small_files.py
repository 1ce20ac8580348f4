"""Compare fields of `config.json` and the other small files of two models."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.model_directory.rope_settings import scaling_settings

from ..huggingface.directory import INDEX
from ..model_on_disk import ModelOnDisk
from ..nemo_checkpoint.context import HEADERS, WEIGHT_LIST

SET_BY_OPTIONS = frozenset(
    {
        "rope_theta",
        "rope_scaling",
        "max_position_embeddings",
        "sliding_window",
        "use_sliding_window",
        "layer_types",
        "dual_chunk_attention_config",
        "dtype",
    }
)
"""Fields that options of import and export change."""

PROVENANCE = frozenset({"transformers_version", "_name_or_path"})
"""Fields about who wrote the file."""

_SPELLINGS = {"rope_theta", "rope_scaling", "rope_parameters", "dtype", "torch_dtype"}
_COMPARED_ELSEWHERE = {"config.json", INDEX, WEIGHT_LIST, HEADERS}


@dataclass(frozen=True)
class FieldDifference:
    name: str
    a: Any
    b: Any
    allowed: bool


@dataclass(frozen=True)
class FileDifference:
    """`how`: differs, only in A, only in B."""

    name: str
    how: str
    allowed: bool


def compare_configs(a: ModelOnDisk, b: ModelOnDisk, allowed: Collection[str]) -> list[FieldDifference]:
    """Fields that mean something else, sorted by name; however they are spelt, and with defaults filled in."""
    ours, theirs = _meaning(a), _meaning(b)
    return [
        FieldDifference(name, ours.get(name), theirs.get(name), name in allowed)
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _meaning(source: ModelOnDisk) -> dict[str, Any]:
    from transformers import AutoConfig

    defaults = AutoConfig.for_model(source.family.model_type).to_dict()
    config = source.config
    fields = {name: value for name, value in {**defaults, **config.raw}.items() if name not in _SPELLINGS}
    if "transformers_version" not in config.raw:
        fields.pop("transformers_version", None)
    return fields | {
        "head_dim": source.model_shape.head_size,
        "num_key_value_heads": source.model_shape.kv_heads,
        "rope_theta": config.rope.theta,
        "rope_scaling": scaling_settings(config.rope.scaling),
        "dtype": config.stored_dtype,
    }


def compare_files(a: ModelOnDisk, b: ModelOnDisk, allowed: Collection[str]) -> tuple[int, list[FileDifference]]:
    """How many files are equal, and those that are not: tokenizer, chat template, generation settings, licences."""
    ours, theirs = _files(a), _files(b)
    equal, differences = 0, []
    for name in sorted(ours.keys() | theirs.keys()):
        if name in ours and name in theirs and _same_content(ours[name], theirs[name]):
            equal += 1
            continue
        how = "differs" if name in ours and name in theirs else f"only in {'A' if name in ours else 'B'}"
        differences.append(FileDifference(name, how, name in allowed))
    return equal, differences


def _files(source: ModelOnDisk) -> dict[str, Path]:
    return {path.name: path for path in source.origin.companions() if path.name not in _COMPARED_ELSEWHERE}


def _same_content(a: Path, b: Path) -> bool:
    """Byte for byte, or as JSON: another program's indentation is not another tokenizer."""
    ours, theirs = a.read_bytes(), b.read_bytes()
    if ours == theirs or a.suffix != ".json":
        return ours == theirs
    try:
        return json.loads(ours) == json.loads(theirs)
    except ValueError:
        return False
