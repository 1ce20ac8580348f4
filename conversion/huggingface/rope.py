"""Rotary base, its scaling and the number of positions in a Hugging Face `config.json`, read and changed.

transformers 4 keeps the base in `rope_theta` and the scaling in `rope_scaling`, transformers 5 both in
`rope_parameters`; a change is written where the file has it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from nemo_longpo.attention.rope import RopeSettings
from nemo_longpo.attention.rope_config import parse_scaling, scaling_of
from nemo_longpo.errors import InputError

ScalingChoice = Literal["keep", "none"] | Mapping[str, Any]
"""What becomes of a model's RoPE scaling: it stays, it goes, or another `rope_scaling` object takes its place."""


def rope_theta(config: Mapping[str, Any]) -> float:
    nested = (config.get("rope_parameters") or {}).get("rope_theta")
    return config.get("rope_theta", 10000.0 if nested is None else nested)


def rope_settings(config: Mapping[str, Any], where: str) -> RopeSettings:
    """Base and scaling. Raises InputError, which names the file `where`, if they are not supported or not possible."""
    scaling = scaling_of(config, where)
    try:
        return RopeSettings(rope_theta(config), scaling)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


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
    if rope_theta(config) == theta:
        return dict(config)
    if config.get("rope_parameters") and "rope_theta" not in config:
        return {**config, "rope_parameters": {**config["rope_parameters"], "rope_theta": theta}}
    return {**config, "rope_theta": theta}


def with_rope_scaling(config: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy with another RoPE scaling, or without; the rotary base stays."""
    nested = config.get("rope_parameters")
    if nested and not config.get("rope_scaling"):
        base = {name: value for name, value in nested.items() if name == "rope_theta"}
        return {**config, "rope_parameters": {**base, **(settings or {"rope_type": "default"})}}
    if settings:
        return {**config, "rope_scaling": dict(settings)}
    return {**config, "rope_scaling": None} if config.get("rope_scaling") else dict(config)


def with_max_length(config: Mapping[str, Any], length: int, where: str) -> dict[str, Any]:
    """Another `max_position_embeddings` in a copy; a scaling that took the old one as its original length keeps it."""
    changed = {**config, "max_position_embeddings": length}
    if scaling_of(changed, where) == scaling_of(config, where):
        return changed
    settings = config.get("rope_scaling") or config["rope_parameters"]
    original = {"original_max_position_embeddings": config["max_position_embeddings"]}
    return with_rope_scaling(changed, {**settings, **original})
