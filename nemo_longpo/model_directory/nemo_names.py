"""The one table of names between a Hugging Face `config.json` and the configuration of a NeMo model."""

from collections.abc import Mapping
from typing import Any

NEMO_NAMES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layernorm_epsilon",
    "initializer_range": "init_method_std",
    "rope_theta": "rotary_base",
    "rope_scaling": "seq_len_interpolation_factor",
    "sliding_window": "window_size",
    "tie_word_embeddings": "share_embeddings_and_output_weights",
    "attention_dropout": "attention_dropout",
    "attention_bias": "add_qkv_bias",
    "use_qk_norm": "qk_layernorm",
}
"""Field of `config.json` → field of NeMo's configuration. `rope_scaling` and `sliding_window` differ in form too."""


def as_huggingface(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `config.json`, in the order of the table, from a NeMo model's configuration; None for those it lacks.

    NeMo's `window_size` is the pair (left, right) in tokens, and −1 sees everything.
    """
    fields = {ours: config.get(theirs) for ours, theirs in NEMO_NAMES.items()}
    window = fields["sliding_window"]
    left = window[0] if isinstance(window, list | tuple) and window else window
    special = {"rope_scaling": nemo_scaling_settings(config), "sliding_window": None if left == -1 else left}
    return fields | special


def nemo_scaling_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `rope_scaling` object of a NeMo model's configuration; None if its angles are plain.

    All of NeMo's configurations know the linear scaling, those of Llama 3.1 and later have their own.
    """
    if "old_context_len" in config:
        return {
            "rope_type": "llama3",
            "factor": config.get("scale_factor"),
            "low_freq_factor": config.get("low_freq_factor"),
            "high_freq_factor": config.get("high_freq_factor"),
            "original_max_position_embeddings": config.get("old_context_len"),
        }
    factor = config.get("seq_len_interpolation_factor")
    return {"rope_type": "linear", "factor": factor} if factor else None
