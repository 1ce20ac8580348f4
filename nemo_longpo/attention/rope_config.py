"""RoPE scaling as Hugging Face writes it into `config.json`: read, checked, and written again."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from nemo_longpo.errors import InputError

from .rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

SCALINGS: dict[str, type[RopeScaling]] = {"linear": LinearScaling, "yarn": YarnScaling, "llama3": Llama3Scaling}

# `rope_theta` stands here in transformers 5; `finetuned` is a remark that some early YaRN models carry.
_NOT_ABOUT_SCALING = {"rope_type", "type", "rope_theta", "finetuned"}


def scaling_of(config: Mapping[str, Any], where: str) -> RopeScaling | None:
    """The scaling in a `config.json`, of transformers 4 (`rope_scaling`) or 5 (`rope_parameters`); None if plain.

    `where` names the file in errors. Raises InputError for what is not supported, not complete or not possible.
    """
    settings = config.get("rope_scaling") or config.get("rope_parameters")
    return parse_scaling(settings, where, config.get("max_position_embeddings"))


def parse_scaling(
    settings: Mapping[str, Any] | None, where: str, max_position_embeddings: int | None = None
) -> RopeScaling | None:
    """The scaling that a `rope_scaling` object describes.

    Without an original length of its own, it takes `max_position_embeddings` for one, as Hugging Face does.
    """
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    kind = given.get("rope_type") or given.get("type") or "default"
    given = {name: value for name, value in given.items() if name not in _NOT_ABOUT_SCALING}
    if not isinstance(kind, str) or kind not in {*SCALINGS, "default"}:
        raise InputError(
            f"{where}: rope scaling of type {kind} is not supported; choose {', '.join(SCALINGS)} or none "
            "(`longpo convert import --rope-scaling`)"
        )
    if kind != "default" and _takes(kind, "original_max_position_embeddings") and max_position_embeddings:
        given.setdefault("original_max_position_embeddings", max_position_embeddings)
    _check_names(kind, given, where)
    try:
        return None if kind == "default" else SCALINGS[kind](**given)
    except InputError as error:
        raise InputError(f"{where}: rope scaling of type {kind}: {error}") from None


def nemo_scaling_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `rope_scaling` object of a NeMo model's configuration; None if its angles are plain.

    All of NeMo's configurations know the linear scaling, those of Llama 3.1 and later have their own.
    """
    if "old_context_len" in config:
        return {
            "rope_type": "llama3",
            "factor": config["scale_factor"],
            "low_freq_factor": config["low_freq_factor"],
            "high_freq_factor": config["high_freq_factor"],
            "original_max_position_embeddings": config["old_context_len"],
        }
    factor = config.get("seq_len_interpolation_factor")
    return {"rope_type": "linear", "factor": factor} if factor else None


def scaling_settings(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` object of a scaling: plain values, complete without the rest of a `config.json`."""
    if scaling is None:
        return None
    (kind,) = (name for name, kind in SCALINGS.items() if isinstance(scaling, kind))
    return {"rope_type": kind, **{name: value for name, value in asdict(scaling).items() if value is not None}}


def usable_positions(length: int | None, scaling: RopeScaling | None) -> int | None:
    """Positions that a model is made for, by its configuration's `length` (`max_position_embeddings`).

    A linear or YaRN scaling may stand beside the length before it (as Qwen2.5 and vLLM have it) or after it, so the
    larger reading counts. None if the configuration does not say.
    """
    if length is None or scaling is None or isinstance(scaling, Llama3Scaling):
        return length
    unscaled = scaling.original_max_position_embeddings if isinstance(scaling, YarnScaling) else length
    return max(length, int(unscaled * scaling.factor))


def _takes(kind: str, name: str) -> bool:
    return name in {field.name for field in fields(SCALINGS[kind])}


def _check_names(kind: str, given: Mapping[str, Any], where: str) -> None:
    known = fields(SCALINGS[kind]) if kind in SCALINGS else ()
    unknown = sorted(given.keys() - {field.name for field in known})
    if unknown:
        raise InputError(f"{where}: rope scaling of type {kind} has no setting {', '.join(unknown)}; remove it")
    missing = [field.name for field in known if field.default is MISSING and field.name not in given]
    if missing:
        raise InputError(f"{where}: rope scaling of type {kind} needs {', '.join(missing)}; add it")
