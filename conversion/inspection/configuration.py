"""The parts of a report that follow from a `config.json`, or from what an export would write for one."""

import math
from collections.abc import Mapping
from typing import Any

from ..families.family import Family
from ..families.fusions import Geometry
from ..huggingface.config import active_window
from ..huggingface.rope import rope_theta


def sizes(config: Mapping[str, Any], family: Family | None) -> dict[str, Any]:
    """Null where a model of an unknown kind (no `family`) does not say."""
    config = {**(family.defaults if family else {}), **config}
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    return {
        "layers": config.get("num_hidden_layers"),
        "hidden": hidden,
        "feed_forward": config.get("intermediate_size"),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_size": config.get("head_dim") or (hidden // heads if heads and hidden else None),
        "vocabulary": config.get("vocab_size"),
        "tied": config.get("tie_word_embeddings", False if family else None),
    }


def positions(config: Mapping[str, Any], family: Family | None) -> dict[str, Any]:
    """`sliding_window` is one that hides something, where that can be told."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    limit = config.get("max_position_embeddings")
    return {
        "max_position_embeddings": limit,
        "rope_theta": rope_theta(config),
        "rope_scaling": scaling if kind not in (None, "default") else None,
        "sliding_window": active_window(config, family) if family and limit else config.get("sliding_window"),
    }


def parameters(family: Family, geometry: Geometry) -> int:
    """Without the rows that pad a vocabulary, and tied embeddings once."""
    return sum(math.prod(piece.global_shape) for piece in family.first_pieces(geometry))
