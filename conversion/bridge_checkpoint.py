"""What Megatron-Bridge keeps beside the tensors: the settings of a run, its counters, and which checkpoint is newest.

All of it is plain data, written and read without Bridge. `run_config.yaml` names Python classes; here they are text,
and nothing is imported or built of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from nemo_longpo.checkpoints import completeness, forms
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import model_config, rope_settings
from nemo_longpo.yaml_input import read_yaml_mapping

from .families.family import Family
from .huggingface.config import megatron_fields
from .huggingface.directory import HfDirectory
from .training_state import TrainingState

_YARN = {
    "factor": "yarn_rotary_scaling_factor",
    "original_max_position_embeddings": "yarn_original_max_position_embeddings",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
    "mscale": "yarn_mscale",
    "mscale_all_dim": "yarn_mscale_all_dim",
    "truncate": "yarn_correction_range_round_to_int",
}
"""Fields of `rope_scaling` → those of Bridge's provider, which is left with its defaults for what is not given."""

_COUNTERS = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
_SWITCHES = ("do_train", "do_valid", "do_test")


def read_model(checkpoint: Path) -> dict[str, Any]:
    """Return the model's recorded configuration under `config`, as a NeMo checkpoint's record has it.

    The settings of the data and of training are under `dataset` and `train`. `rope_scaling` is there too where our
    training wrote it, as an object or null; Bridge itself has a switch of that name. Raises InputError if the record is
    missing or describes no language model, or if it is one of adapters.
    """
    completeness.require_files(checkpoint, [forms.RUN_CONFIG])
    path = checkpoint / forms.RUN_CONFIG
    record = read_yaml_mapping(path, f"{checkpoint} is not a checkpoint of Megatron-Bridge")
    config = record.get("model")
    if not isinstance(config, dict) or not config.get("num_layers"):
        raise InputError(f"{path} describes no language model; give a checkpoint of one")
    if record.get("peft"):
        raise InputError(
            f"{checkpoint} holds adapters of Megatron-Bridge, which are not read here; merge them with Bridge's own "
            "script (examples/peft/merge_lora.py) and give the result"
        )
    scaling = config.get("rope_scaling")
    ours = {} if isinstance(scaling, bool) else {"rope_scaling": scaling}
    return {"config": config, **{name: record.get(name) for name in ("dataset", "train")}, **ours}


def small_files(checkpoint: Path, model: Mapping[str, Any]) -> HfDirectory:
    """The small Hugging Face files of a checkpoint: its own, or those of the directory that it was made from.

    Raises InputError if neither is there.
    """
    kept = checkpoint / forms.BRIDGE.small_files
    if (kept / "config.json").is_file():
        return HfDirectory.open(kept)
    named = model["config"].get("hf_model_id")
    if isinstance(named, str) and (Path(named) / "config.json").is_file():
        return HfDirectory.open(Path(named))
    source = f"{named}, from which it was made, is no directory here" if named else "does not say where it came from"
    raise InputError(
        f"{checkpoint} keeps no {forms.BRIDGE.small_files}/config.json, and {source}; pass --base with the Hugging "
        "Face directory of the model"
    )


def write_description(
    checkpoint: Path,
    family: Family,
    config: model_config.ModelConfig,
    model_shape: ModelShape,
    *,
    source: Path,
    state: TrainingState | None = None,
) -> None:
    """Write `run_config.yaml`, `train_state.pt` and the files beside the checkpoint that name it as the newest.

    `source` is recorded as the Hugging Face directory of the model and its tokenizer; `state` is how far training came.
    """
    order = dict(state.order) if state else {}
    record = {
        "_target_": "megatron.bridge.training.config.ConfigContainer",
        "model": provider_fields(family, config, model_shape) | {"hf_model_id": str(source)},
        "tokenizer": {
            "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(source),
        },
        "checkpoint": {
            "_target_": "megatron.bridge.training.config.CheckpointConfig",
            "ckpt_format": "torch_dist",
            "fully_parallel_save": True,
            "save_optim": state is not None,
            "save_rng": False,
        },
        "train": {name: value for name, value in order.items() if name == "global_batch_size"},
        "dataset": {name: value for name, value in order.items() if name != "global_batch_size"},
    }
    (checkpoint / forms.RUN_CONFIG).write_text(yaml.safe_dump(record), encoding="utf-8")
    step = state.step if state else 0
    counters = dict.fromkeys(_COUNTERS, 0) | {"step": step, "consumed_train_samples": state.samples if state else 0}
    train_state = {
        **{name: torch.tensor(value) for name, value in counters.items()},
        "floating_point_operations_so_far": torch.tensor(0.0),
        **{name: torch.tensor(False) for name in _SWITCHES},
    }
    newest_state, newest_iteration = (checkpoint.parent / name for name in forms.TRACKERS)
    for path in (checkpoint / "train_state.pt", newest_state):
        torch.save(train_state, path)
    newest_iteration.write_text(str(step), encoding="utf-8")


def provider_fields(family: Family, config: model_config.ModelConfig, model_shape: ModelShape) -> dict[str, Any]:
    """Fields of Bridge's GPTModelProvider for a Hugging Face configuration, as plain values.

    They are those that Bridge's own import sets. Fused kernels are left to the job that loads the checkpoint.
    """
    dtype = config.stored_dtype
    return {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        **megatron_fields(config, model_shape),
        **_rotary(config),
        "seq_length": config.max_position_embeddings,
        "normalization": "RMSNorm",
        "activation_func": _name("torch.nn.functional.silu"),
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": model_shape.bias,
        "qk_layernorm": family.qk_norm,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "layernorm_zero_centered_gamma": False,
        "fp16": dtype == "float16",
        "bf16": dtype == "bfloat16",
        "params_dtype": _name(f"torch.{dtype}"),
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    }


def _rotary(config: model_config.ModelConfig) -> dict[str, Any]:
    """Bridge's own fields of a scaling; training of ours reads `config.json` among the small files."""
    scaling = config.scaling
    fields: dict[str, Any] = {"position_embedding_type": "rope", "rope_scaling": False}
    if isinstance(scaling, rope_settings.Llama3Scaling):
        return fields | {"rope_scaling": True, "rope_scaling_factor": scaling.factor}
    if isinstance(scaling, rope_settings.YarnScaling):
        given = config.rope_fields
        named = {name: given[ours] for ours, name in _YARN.items() if ours in given}
        return fields | {"position_embedding_type": "yarn"} | named
    return fields


def _name(dotted: str) -> dict[str, Any]:
    """How Bridge records a Python object that is not called."""
    return {"_target_": dotted, "_call_": False}
