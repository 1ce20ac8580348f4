"""The `context/` half of a NeMo checkpoint: which model, which configuration, which tokenizer.

It names stock NeMo classes only, with plain values, so that NeMo's restricted unpickler and a NeMo without this project
both load it. The tokenizer is NeMo's `AutoTokenizer` over a directory called `hf`, which holds *all* small files of the
Hugging Face model. NeMo copies a tokenizer's directory into every checkpoint it writes, so a training run that restores
its tokenizer from here (`resume.restore_config.load_artifacts=true`) carries these files along, and export finds them.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from nemo_longpo.checkpoints import completeness, forms
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import model_config, rope_settings
from nemo_longpo.yaml_input import read_yaml_mapping

from ..families.family import Family
from ..huggingface.config import megatron_fields

ARTIFACTS = forms.SMALL_FILES
"""Directory inside `context/`. NeMo keeps the last component of the tokenizer's path."""

WEIGHT_LIST = "longpo_weights.json"
"""Inside ARTIFACTS: for each Hugging Face tensor its file and dtype, so that export writes the same files."""


HEADERS = "longpo_headers.json"
"""Inside ARTIFACTS, where there are any: safetensors file → its header, if another program than the library laid it out
(metadata of its own, another order), so that export writes the same bytes."""


def nemo_configuration(
    family: Family, config: model_config.ModelConfig, model_shape: ModelShape
) -> tuple[str, dict[str, Any]]:
    """NeMo's model configuration of a Hugging Face one: the class's name, and its fields.

    The number of positions is never null. Of RoPE scalings NeMo's configurations know the linear one, and Llama's that
    of Llama 3; training reads all of them from the `config.json` in ARTIFACTS.
    """
    import torch

    name, scaling = config.stored_dtype, config.scaling
    arguments: dict[str, Any] = {
        **megatron_fields(config, model_shape),
        **dict.fromkeys(family.nemo_positions, config.max_position_embeddings),
        "cp_comm_type": "p2p",
        "apply_rope_fusion": False,  # Llama's default, True, does not construct without Transformer Engine
        "fp16": name == "float16",
        "bf16": name == "bfloat16",
        "params_dtype": getattr(torch, name),
    }
    if family.nemo_llama3_config is None or not isinstance(scaling, rope_settings.Llama3Scaling):
        return family.nemo_config, arguments
    return family.nemo_llama3_config, arguments | {
        "scale_factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "old_context_len": scaling.original_max_position_embeddings,
    }


def write_context(
    directory: Path, family: Family, config: model_config.ModelConfig, model_shape: ModelShape, artifacts: Path
) -> None:
    """Write `io.json`, `model.yaml` and a copy of `artifacts`, a directory whose last component is ARTIFACTS."""
    from nemo import lightning as nl
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
    from nemo.lightning.io.pl import TrainerContext

    try:
        tokenizer = AutoTokenizer(str(artifacts))
    except ValueError as error:
        # NeMo's error names a temporary copy; the error that it caught gives the reason.
        raise InputError(f"the model's tokenizer does not load: {error.__context__}") from error
    classes = import_module(f"nemo.collections.llm.gpt.model.{family.nemo_module}")
    name, arguments = nemo_configuration(family, config, model_shape)
    model = getattr(classes, family.nemo_model)(getattr(classes, name)(**arguments), tokenizer=tokenizer)
    trainer = nl.Trainer(
        devices=1, accelerator="cpu", strategy=nl.MegatronStrategy(), logger=False, enable_checkpointing=False
    )
    TrainerContext(model=model, trainer=trainer, extra={}).io_dump(directory, yaml_attrs=["model"])


def read_model(context: Path) -> dict[str, Any]:
    """Return the content of `model.yaml`; the model's configuration is under `config`.

    NeMo writes this file beside `io.json` from the same object. Plain YAML runs no code, and reading it needs no NeMo.
    Raises InputError if the file is missing or describes no language model.
    """
    path = context / "model.yaml"
    if context.is_dir():
        completeness.require_files(context, completeness.CONTEXT_FILES)
    value = read_yaml_mapping(path, f"{context.parent} is not a NeMo 2 checkpoint")
    if not isinstance(value.get("config"), dict):
        raise InputError(f"{path} holds no model configuration; {context.parent} is not a NeMo 2 language model")
    return value


def write_weight_list(artifacts: Path, weights: Mapping[str, tuple[str, str]], headers: Mapping[str, str]) -> None:
    content = {name: {"file": file, "dtype": dtype} for name, (file, dtype) in weights.items()}
    (artifacts / WEIGHT_LIST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if headers:
        (artifacts / HEADERS).write_text(json.dumps(headers, indent=1) + "\n", encoding="utf-8")
