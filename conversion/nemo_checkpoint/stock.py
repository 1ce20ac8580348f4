"""Describe a checkpoint without Hugging Face files, as stock `nemo llm import` and `nemo llm finetune` write it.

The sources are NeMo's own records: `model.yaml`, the tokenizer's directory, the generation settings.

Shape letters: V vocabulary rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.checkpoints.forms import NEMO
from nemo_longpo.checkpoints.trust import check_tokenizer_files
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import downloads, model_config, nemo_names, tokenizer_files

from ..families import name_tables
from ..families.family import Family
from ..huggingface.directory import HfDirectory
from ..torch_dist import DistCheckpoint

NEMO_MODELS = "nemo.collections.llm.gpt.model"

COMPUTED_AS = {
    "normalization": "RMSNorm",
    "layernorm_zero_centered_gamma": False,
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "multi_latent_attention": False,
    "num_moe_experts": None,
}
"""Settings that the supported families always have in `transformers`, so that their `config.json` lacks them."""

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
WORD_EMBEDDINGS = NEMO.prefix + "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class StockOrigin(HfDirectory):
    """Takes the place of the imported model's directory. `path` is the tokenizer's directory."""

    derived: model_config.ModelConfig
    generation: Path | None

    @property
    def config(self) -> model_config.ModelConfig:
        return self.derived

    def companions(self) -> list[Path]:
        return [*super().companions(), *([self.generation] if self.generation else [])]

    @property
    def remark(self) -> str:
        generation = "those that NeMo's import kept" if self.generation else "unknown"
        return (
            f"{self.path.parent} holds no Hugging Face configuration: config.json follows from NeMo's, dtype "
            f"{self.derived.torch_dtype} is that of the stored weights, generation settings are {generation}; "
            "--base takes everything from the original model instead"
        )


def tokenizer_directory(context: Path, model: Mapping[str, Any]) -> Path | None:
    """The directory of the tokenizer's files; None if NeMo kept only its name on the Hub, or the files were missing."""
    name = (model.get("tokenizer") or {}).get("pretrained_model_name")
    kept = context / Path(name).name if isinstance(name, str) else None
    return kept if kept and kept.is_dir() else None


def stock_origin(context: Path, model: Mapping[str, Any], weights: DistCheckpoint) -> StockOrigin:
    """Describe a stock model. Raises InputError if it is of no supported family, or its tokenizer is not there."""
    tokenizer = tokenizer_directory(context, model)
    if tokenizer is None or not any((tokenizer / name).is_file() for name in tokenizer_files.TOKENIZERS):
        raise InputError(
            f"{context} holds no tokenizer files (none of {', '.join(tokenizer_files.TOKENIZERS)}); pass --base with "
            "the Hugging Face directory that this checkpoint was made from"
        )
    config = _config(model["config"], str(context / "model.yaml"), tokenizer, weights)
    kept = (model["config"].get("generation_config") or {}).get("pretrained_model_name_or_path")
    generation = context / Path(kept or "").name / "generation_config.json"
    if not generation.is_file():
        return StockOrigin(tokenizer, config, None)
    special = {name: value for name, value in downloads.read_model_json(generation).items() if name in SPECIAL_TOKENS}
    return StockOrigin(tokenizer, config.changed(special), generation)


def _config(
    config: Mapping[str, Any], where: str, tokenizer: Path, weights: DistCheckpoint
) -> model_config.ModelConfig:
    """`config.json` of a NeMo configuration, without the number of positions if it is null, as in NeMo's Mistral."""
    family = _family(config, where)
    _check_computed_as(config, COMPUTED_AS | {"qk_layernorm": family.qk_norm}, where)
    nemo = model_config.ModelConfig.from_nemo(config, where)
    nemo.require("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", advice="pass --base")
    fields = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_act": "silu",
        **nemo_names.as_huggingface(config),
        # Qwen3 has the number of positions apart from the length of training.
        "max_position_embeddings": config.get("max_position_embeddings") or config.get("seq_length"),
        "num_key_value_heads": nemo.kv_heads,
        "head_dim": nemo.head_size,
        "vocab_size": _vocabulary_rows(config, tokenizer, weights),
        "rope_theta": float(nemo.theta),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "torch_dtype": str(weights.dtype(WORD_EMBEDDINGS)).removeprefix("torch."),
    }
    unwritten = {"attention_bias", "use_qk_norm"}
    if not fields["max_position_embeddings"]:
        unwritten.add("max_position_embeddings")
    return model_config.ModelConfig.parse(
        {name: value for name, value in fields.items() if name not in unwritten}, where, nemo_names.NEMO_NAMES
    )


def _family(config: Mapping[str, Any], where: str) -> Family:
    target = str(config.get("_target_"))
    for family in name_tables.FAMILIES:
        if target.startswith(f"{NEMO_MODELS}.{family.nemo_module}."):
            return family
    supported = ", ".join(family.nemo_config for family in name_tables.FAMILIES)
    raise InputError(f"{where} describes a {target}; supported are {supported} and their variants")


def _check_computed_as(config: Mapping[str, Any], computed_as: Mapping[str, Any], where: str) -> None:
    for name, expected in computed_as.items():
        if config.get(name, expected) != expected:
            raise InputError(f"{where}: {name} is {config[name]}; the exported model would compute with {expected}")


def _vocabulary_rows(config: Mapping[str, Any], tokenizer: Path, weights: DistCheckpoint) -> int:
    """V of the imported model. If it is not recorded, it is the number of tokens, rounded up as NeMo does.

    Training under tensor parallelism may have added rows, which belong to no token.
    """
    stored = weights.shape(WORD_EMBEDDINGS)[0]
    if config.get("vocab_size"):
        return config["vocab_size"]
    from transformers import AutoTokenizer

    multiple = config["make_vocab_size_divisible_by"]
    check_tokenizer_files(tokenizer)
    tokens = len(AutoTokenizer.from_pretrained(str(tokenizer), trust_remote_code=False))
    return min(-(-tokens // multiple) * multiple, stored)
