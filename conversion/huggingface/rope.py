"""Rotary base, its scaling and the number of positions in a Hugging Face `config.json`, read and changed.

transformers 4 keeps the base in `rope_theta` and the scaling in `rope_scaling`, transformers 5 both in
`rope_parameters`; a change is written wherever the file has it, and a file that tells the two differently is refused.
"""

from collections.abc import Mapping
from typing import Any, Literal

from nemo_longpo.attention.rope import RopeSettings
from nemo_longpo.attention.rope_config import parse_scaling, scaling_of
from nemo_longpo.errors import InputError

ScalingChoice = Literal["keep", "none"] | Mapping[str, Any]
"""What becomes of a model's RoPE scaling: it stays, it goes, or another `rope_scaling` object takes its place."""


DEFAULT_THETA = 10000.0


def rope_theta(config: Mapping[str, Any]) -> float:
    """As transformers 5 reads it; where `rope_settings` finds nothing to refuse, transformers 4 reads the same."""
    nested = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return nested.get("rope_theta", config.get("rope_theta", DEFAULT_THETA))


def rope_settings(config: Mapping[str, Any], where: str) -> RopeSettings:
    """Base and scaling. Raises InputError, which names the file `where`, if they are not supported, not possible, or
    not the same for every version of transformers that knows the file's spelling."""
    base, scaling = rope_theta(config), scaling_of(config, where)
    old_base, old_scaling = config.get("rope_theta", DEFAULT_THETA), config.get("rope_scaling")
    length = config.get("max_position_embeddings")
    if is_read_by_4(config) and (old_base != base or parse_scaling(old_scaling, where, length) != scaling):
        raise InputError(
            f"{where}: rope_theta and rope_scaling say one thing, rope_parameters or a rope_theta within the scaling "
            "another; remove what is wrong"
        )
    try:
        return RopeSettings(base, scaling)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def is_read_by_4(config: Mapping[str, Any]) -> bool:
    """Whether the file is spelt for transformers 4, if only among others; else that takes the base for 10,000, and the
    scaling for none, without a word."""
    return "rope_theta" in config or bool(config.get("rope_scaling")) or not config.get("rope_parameters")


def with_rope(
    config: Mapping[str, Any], where: str, theta: float | None, scaling: ScalingChoice | None
) -> dict[str, Any]:
    """A copy with another base or scaling. A new base under an old scaling needs a choice of the scaling."""
    if scaling is None or scaling == "keep":
        if scaling is None and theta not in (None, rope_theta(config)) and scaling_of(config, where) is not None:
            raise InputError(
                f"{where}: the model's rope scaling was made for another base than --rope-theta; pass "
                "--rope-scaling none to drop the scaling, or --rope-scaling keep to apply it to the new base"
            )
        changed = dict(config)
    elif scaling == "none":
        changed = with_rope_scaling(config, None)
    else:
        if "rope_theta" in scaling:
            raise InputError("--rope-scaling holds rope_theta, which is not part of the scaling; pass --rope-theta")
        parse_scaling(scaling, "--rope-scaling", config.get("max_position_embeddings"))
        changed = with_rope_scaling(config, scaling)
    return changed if theta is None else with_rope_theta(changed, theta)


def with_rope_theta(config: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """A copy with another rotary base; unchanged when it has that value already."""
    changed = dict(config)
    if rope_theta(config) == theta:
        return changed
    if is_read_by_4(config):
        changed["rope_theta"] = theta
    for name in ("rope_scaling", "rope_parameters"):
        nested = config.get(name)
        if nested and (name == "rope_parameters" or "rope_theta" in nested):
            changed[name] = {**nested, "rope_theta": theta}
    return changed


def with_rope_scaling(config: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy with another RoPE scaling, or without; the rotary base stays."""
    changed = dict(config)
    nested = config.get("rope_parameters")
    if nested:
        base = {name: value for name, value in nested.items() if name == "rope_theta"}
        changed["rope_parameters"] = {**base, **(settings or {"rope_type": "default"})}
    if config.get("rope_scaling") or (settings and is_read_by_4(config)):
        changed["rope_scaling"] = dict(settings) if settings else None
    return changed


def with_max_length(config: Mapping[str, Any], length: int, where: str) -> dict[str, Any]:
    """Another `max_position_embeddings` in a copy; a scaling that took the old one as its original length keeps it."""
    changed = {**config, "max_position_embeddings": length}
    if scaling_of(changed, where) == scaling_of(config, where):
        return changed
    settings = config.get("rope_scaling") or config["rope_parameters"]
    original = {"original_max_position_embeddings": config["max_position_embeddings"]}
    return with_rope_scaling(changed, {**settings, **original})
