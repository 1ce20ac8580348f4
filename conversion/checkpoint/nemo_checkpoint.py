"""A NeMo checkpoint as Hugging Face would describe it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.attention.rope_config import parse_scaling, scaling_of
from nemo_longpo.conversion.families.family import Family
from nemo_longpo.conversion.families.known import family_of
from nemo_longpo.conversion.families.layouts import Geometry
from nemo_longpo.conversion.huggingface.config import check_supported
from nemo_longpo.conversion.huggingface.directory import HfDirectory
from nemo_longpo.conversion.huggingface.rope import with_rope_scaling, with_rope_theta
from nemo_longpo.errors import InputError

from .context import ARTIFACTS, read_model
from .names import KEY_PREFIX
from .reader import DistCheckpoint


@dataclass(frozen=True)
class NemoCheckpoint:
    """Read access to a checkpoint that `longpo convert import` wrote, or one trained from it under any parallel sizes.

    `origin` is the directory whose small files describe the imported model; `config` is its `config.json` with the
    rotary base and scaling of training.
    """

    path: Path
    origin: HfDirectory
    config: dict[str, Any]
    family: Family
    geometry: Geometry
    weights: DistCheckpoint

    @classmethod
    def open(cls, path: Path, base: Path | None = None) -> "NemoCheckpoint":
        """`base` is a Hugging Face directory to take the small files from, instead of those in the checkpoint."""
        model = read_model(path / "context")
        origin = _origin(path, base)
        where = str(origin.path / "config.json")
        check_supported(origin.config, where)
        config = _as_trained(origin.config, where, model)
        family, geometry = family_of(config, where), Geometry.from_config(config)
        weights = DistCheckpoint(path / "weights")
        _check_shapes(weights, family, geometry)
        return cls(path, origin, config, family, geometry, weights)


def _origin(checkpoint: Path, base: Path | None) -> HfDirectory:
    if base is not None:
        return HfDirectory.open(base)
    kept = checkpoint / "context" / ARTIFACTS
    if not (kept / "config.json").is_file():
        raise InputError(
            f"{kept} does not hold the imported model's files; pass --base with the Hugging Face directory that this "
            "checkpoint was made from"
        )
    return HfDirectory.open(kept)


def _as_trained(config: Mapping[str, Any], where: str, model: Mapping[str, Any]) -> dict[str, Any]:
    changed = with_rope_theta(config, model["config"]["rotary_base"])
    # Our training records the scaling; a checkpoint that was only imported has that of its config.json.
    if "rope_scaling" in model and parse_scaling(model["rope_scaling"], where) != scaling_of(config, where):
        changed = with_rope_scaling(changed, model["rope_scaling"])
    return changed


def _check_shapes(weights: DistCheckpoint, family: Family, geometry: Geometry) -> None:
    """The checkpoint is of this architecture. Vocabulary rows may exceed the model's: tensor parallelism pads them."""
    for piece in {piece.entry.key: piece for piece in family.pieces(geometry)}.values():
        key, expected = KEY_PREFIX + piece.entry.key, piece.global_shape
        found = weights.shape(key)
        padded = piece.entry.is_vocabulary and found[1:] == expected[1:] and found[0] >= expected[0]
        if found != expected and not padded:
            raise InputError(
                f"{weights.directory}: {key} has shape {list(found)}, the model's config.json says {list(expected)}; "
                "the checkpoint is of another model"
            )
