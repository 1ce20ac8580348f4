"""The families that convert. A new one is one `Family` here and one test."""

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

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
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        entries=decoder_entries(qkv_bias=True),
        nemo_module="qwen2",
        nemo_model="Qwen2Model",
        nemo_config="Qwen2Config",
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


def family_of(config: ModelConfig) -> Family:
    """The family that a `config.json` belongs to. Raises InputError if it is none of those above."""
    architectures = config.architectures or []
    for family in FAMILIES:
        if config.model_type == family.model_type and family.architecture in architectures:
            return family
    supported = ", ".join(f"{family.architecture} ({family.model_type})" for family in FAMILIES)
    found = f"{', '.join(architectures) or 'no architecture'} ({config.model_type or 'no model_type'})"
    raise InputError(f"{config.file} describes {found}; supported are {supported}")
