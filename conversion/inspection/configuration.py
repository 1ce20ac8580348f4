"""The parts of a report that follow from a `config.json`, or from what an export would write for one."""

import math
from typing import Any

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.model_directory.model_config import DEFAULTS, ModelConfig

from ..families.family import Family


def sizes(config: ModelConfig) -> dict[str, Any]:
    """Null where a model of an unknown kind does not say."""
    known = config.model_type in DEFAULTS
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.kv_heads,
        "head_size": config.head_size,
        "vocabulary": config.vocab_size,
        "tied": False if known and config.tie_word_embeddings is None else config.tie_word_embeddings,
    }


def positions(config: ModelConfig) -> dict[str, Any]:
    """`sliding_window` is one that hides something, where that can be told."""
    return {
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.theta,
        "rope_scaling": None if config.rope_type == "default" else config.rope_fields,
        "sliding_window": config.active_window if config.max_position_embeddings else config.sliding_window,
    }


def parameters(family: Family, model_shape: ModelShape) -> int:
    """Without the rows that pad a vocabulary, and tied embeddings once."""
    return sum(math.prod(piece.global_shape) for piece in family.first_pieces(model_shape))
