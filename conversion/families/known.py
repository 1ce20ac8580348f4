"""The families that convert. A new one is one `Family` here and one test."""

from collections.abc import Mapping
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.defaults import DEFAULTS

from .decoder import decoder_entries
from .family import Family

FAMILIES = (
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        entries=decoder_entries(qkv_bias=False),
        nemo_module="mistral",
        nemo_model="MistralModel",
        nemo_config="MistralConfig7B",
        defaults=DEFAULTS["mistral"],
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        entries=decoder_entries(qkv_bias=True),
        nemo_module="qwen2",
        nemo_model="Qwen2Model",
        nemo_config="Qwen2Config",
        defaults=DEFAULTS["qwen2"],
    ),
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        entries=decoder_entries(qkv_bias=False),
        nemo_module="llama",
        nemo_model="LlamaModel",
        nemo_config="LlamaConfig",
        nemo_llama3_config="Llama31Config",
    ),
)


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family that a `config.json` belongs to; `where` names the file in the error."""
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if config.get("model_type") == family.model_type and family.architecture in architectures:
            return family
    supported = ", ".join(f"{family.architecture} ({family.model_type})" for family in FAMILIES)
    found = f"{', '.join(architectures) or 'no architecture'} ({config.get('model_type') or 'no model_type'})"
    raise InputError(f"{where} describes {found}; supported are {supported}")
