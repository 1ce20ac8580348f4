"""The families that convert. A new one is one `Family` here and one test."""

from collections.abc import Mapping
from typing import Any

from nemo_longpo.errors import InputError

from .decoder import decoder_entries
from .family import Family

FAMILIES = (
    Family("mistral", "MistralForCausalLM", "MistralModel", "MistralConfig7B", decoder_entries(qkv_bias=False)),
    Family("qwen2", "Qwen2ForCausalLM", "Qwen2Model", "Qwen2Config", decoder_entries(qkv_bias=True)),
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
