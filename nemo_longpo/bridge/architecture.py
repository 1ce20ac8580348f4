"""The architecture and the rotary settings of the checkpoint that a run starts from, put on its model's configuration.

A checkpoint is a Hugging Face directory, which Bridge's `AutoBridge` describes, or one of Bridge's own, whose
`run_config.yaml` records the model: of our runs, or made by `AutoBridge.import_ckpt`.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from megatron.bridge import AutoBridge
from megatron.bridge.utils.activation_map import str_to_callable
from torch.nn.functional import silu

from nemo_longpo.checkpoints import forms
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError, one_line
from nemo_longpo.model_directory import computed, model_config, rope_settings
from nemo_longpo.yaml_input import read_yaml_mapping

from .provider import LongPOProvider

TRAINED = ("mistral", "qwen2", "qwen3", "llama")
"""`model_type` of what is trained here."""

FIELDS = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
    *("kv_channels", "normalization", "layernorm_epsilon", "gated_linear_unit", "activation_func"),
    *("add_bias_linear", "add_qkv_bias", "qk_layernorm", "hidden_dropout", "attention_dropout"),
    *("init_method_std", "vocab_size", "share_embeddings_and_output_weights", "window_size", "rotary_percent"),
    *("rotary_interleaved", "layernorm_zero_centered_gamma", "hf_model_id"),
)
"""What belongs to the checkpoint. Rotary base, scaling and positions do too, unless the run sets them."""

_AS_TRAINED = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": silu,
    "add_bias_linear": False,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "layernorm_zero_centered_gamma": False,
    "num_moe_experts": None,
    "multi_latent_attention": False,
    "mtp_num_layers": None,
}


def adopt(model: LongPOProvider, start: Path) -> None:
    """Put the architecture of a checkpoint on a model's configuration, in place.

    Raises InputError if there is no such checkpoint, its architecture is not trained here, it attends within a sliding
    window, or `model` sets a field that belongs to the checkpoint.
    """
    found = _from_bridge(start) if (start / forms.RUN_CONFIG).is_file() else _from_huggingface(start, model)
    for name, wanted in _AS_TRAINED.items():
        if found.get(name, wanted) != wanted:
            raise InputError(
                f"{start} holds a model with {name}={found[name]!r}; nemo_longpo trains Mistral, Qwen2.5, Qwen3 and "
                f"Llama 3, which have {wanted!r}."
            )
    if found.get("window_size") is not None:
        raise _window_refused(start, found["window_size"][0])
    untouched = LongPOProvider()
    for name in FIELDS:
        given, own = getattr(model, name), found.get(name)
        if given not in (getattr(untouched, name), own):
            raise InputError(
                f"model.{name}={given!r} belongs to the checkpoint, and {start} has {own!r}; leave the setting out."
            )
        setattr(model, name, own)
    _adopt_rope(model, found, start)


def _adopt_rope(model: LongPOProvider, found: Mapping[str, Any], start: Path) -> None:
    """Take the rotary settings that the run leaves to the checkpoint, and check what it sets itself."""
    raised = model.rotary_base not in (None, found["rotary_base"])
    if raised and model.rope_scaling is None and found["rope_scaling"]:
        raise InputError(
            f"{start} has rope scaling {found['rope_scaling']}, made for another base than "
            f"model.rotary_base={model.rotary_base:g}; set model.rope_scaling={{rope_type: default}} to drop it, or to "
            "the scaling for the new base."
        )
    if model.rotary_base is None:
        model.rotary_base = found["rotary_base"]
    if model.rope_scaling is None:
        model.rope_scaling = found["rope_scaling"]
    positions = found["seq_length"]
    if model.seq_length is None:
        model.seq_length = positions
    elif positions and model.seq_length > positions:
        model.rope.require_reach(
            model.seq_length,
            model.kv_channels or model.hidden_size // model.num_attention_heads,
            "model",
            length="model.seq_length",
            base="model.rotary_base",
        )


def _from_huggingface(directory: Path, model: LongPOProvider) -> dict[str, Any]:
    config = model_config.ModelConfig.read(directory)
    if config.model_type not in TRAINED:
        raise InputError(
            f"{config.file}: model_type is {config.model_type}; nemo_longpo trains Mistral, Qwen2.5 (qwen2), Qwen3 and "
            "Llama 3."
        )
    computed.require_computed(config)
    if config.dual_chunk_attention_config:
        raise InputError(
            f"{config.file}: dual_chunk_attention_config asks for attention in chunks, which Megatron does not compute"
            "; take a copy of the model without that field to train full attention."
        )
    longer = max(model.seq_length or 0, config.max_position_embeddings or 0)
    window = config.changed({"max_position_embeddings": longer or None}).active_window
    if window is not None:
        raise _window_refused(directory, window)
    rope = config.rope
    try:
        described = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        provider = AutoBridge.from_hf_config(described).to_megatron_provider(load_weights=False)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError(f"{config.file}: Megatron-Bridge refuses the model ({one_line(error)}).") from error
    found = {item.name: getattr(provider, item.name) for item in fields(provider)}
    said, read = ModelShape.of(config), ModelShape.from_nemo(found | {"window_size": None}, config.file)
    if said != read:
        raise InputError(f"{config.file} describes {said}, and Megatron-Bridge makes {read} of it; correct the file.")
    return found | {
        "attention_dropout": 0.0,  # of other trainings: evaluation has none, and neither has this
        "hidden_dropout": 0.0,
        "window_size": None,
        "hf_model_id": str(directory),
        "rotary_base": rope.theta,
        "rope_scaling": rope_settings.scaling_settings(rope.scaling),
        "seq_length": config.max_position_embeddings,
    }


def _from_bridge(checkpoint: Path) -> dict[str, Any]:
    record = checkpoint / forms.RUN_CONFIG
    content = read_yaml_mapping(record, "take another checkpoint").get("model")
    if not isinstance(content, dict) or not content.get("num_layers"):
        raise InputError(f"{record} describes no language model; take another checkpoint.")
    found = dict(content)
    activation = found.get("activation_func")
    if isinstance(activation, dict):
        activation = str(activation.get("_target_", "")).rpartition(".")[2]
    try:
        found["activation_func"] = str_to_callable(str(activation))
    except ValueError as error:
        raise InputError(f"{record}: activation_func is {activation}; nemo_longpo trains silu.") from error
    if isinstance(found.get("rope_scaling"), bool):  # Bridge's own switch; our runs record the object, or null
        found["rope_scaling"] = _scaling_of_bridges_own(checkpoint, found, record)
    return found


def _scaling_of_bridges_own(checkpoint: Path, model: Mapping[str, Any], record: Path) -> dict[str, Any] | None:
    """The `rope_scaling` object of a checkpoint that was imported: of its small Hugging Face files, if it has them."""
    small = forms.small_files_of(checkpoint)
    if (small / "config.json").is_file():
        return rope_settings.scaling_settings(model_config.ModelConfig.read(small).scaling)
    interpolates = model.get("position_embedding_type") == "yarn" or model.get("seq_len_interpolation_factor")
    if interpolates or model["rope_scaling"]:
        raise InputError(
            f"{record}: Bridge records the rope scaling of the model in part only, and {small} has no config.json; "
            "start from the model's Hugging Face directory."
        )
    return None


def _window_refused(start: Path, window: int) -> InputError:
    return InputError(
        f"{start} limits attention to a sliding window of {window} tokens, and nemo_longpo trains full attention; "
        "take a copy of the model whose config.json has no sliding_window."
    )
