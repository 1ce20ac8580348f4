"""The tables give the published models: number of parameters, from the sizes in their `config.json`."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_longpo.conversion.families.name_tables import FAMILIES, family_of
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

# Family, then layers, hidden and feed-forward size, heads, groups, vocabulary, tied, parameters;
# the numbers of the model cards' safetensors. The files of Qwen3-0.6B and 1.7B hold the tied table twice: 751,632,384
# and 2,031,739,904.
PUBLISHED = {
    "Mistral-7B v0.1 and v0.2": ("mistral", 32, 4096, 14336, 32, 8, 32000, False, 7_241_732_096),
    "Mistral-7B v0.3": ("mistral", 32, 4096, 14336, 32, 8, 32768, False, 7_248_023_552),
    "Qwen2.5-0.5B": ("qwen2", 24, 896, 4864, 14, 2, 151936, True, 494_032_768),
    "Qwen2.5-1.5B": ("qwen2", 28, 1536, 8960, 12, 2, 151936, True, 1_543_714_304),
    "Qwen2.5-3B": ("qwen2", 36, 2048, 11008, 16, 2, 151936, True, 3_085_938_688),
    "Qwen2.5-7B": ("qwen2", 28, 3584, 18944, 28, 4, 152064, False, 7_615_616_512),
    "Qwen2.5-14B": ("qwen2", 48, 5120, 13824, 40, 8, 152064, False, 14_770_033_664),
    "Qwen2.5-32B": ("qwen2", 64, 5120, 27648, 40, 8, 152064, False, 32_763_876_352),
    "Qwen2.5-72B": ("qwen2", 80, 8192, 29568, 64, 8, 152064, False, 72_706_203_648),
    "Qwen3-0.6B": ("qwen3", 28, 1024, 3072, 16, 8, 151936, True, 751_632_384 - 151936 * 1024),
    "Qwen3-1.7B": ("qwen3", 28, 2048, 6144, 16, 8, 151936, True, 2_031_739_904 - 151936 * 2048),
    "Qwen3-4B": ("qwen3", 36, 2560, 9728, 32, 8, 151936, True, 4_022_468_096),
    "Qwen3-8B": ("qwen3", 36, 4096, 12288, 32, 8, 151936, False, 8_190_735_360),
    "Qwen3-14B": ("qwen3", 40, 5120, 17408, 40, 8, 151936, False, 14_768_307_200),
    "Qwen3-32B": ("qwen3", 64, 5120, 25600, 64, 8, 151936, False, 32_762_123_264),
    "Llama-3.2-1B": ("llama", 16, 2048, 8192, 32, 8, 128256, True, 1_235_814_400),
    "Llama-3.2-3B": ("llama", 28, 3072, 8192, 24, 8, 128256, True, 3_212_749_824),
    "Llama-3.1-8B": ("llama", 32, 4096, 14336, 32, 8, 128256, False, 8_030_261_248),
    "Llama-3.1-70B": ("llama", 80, 8192, 28672, 64, 8, 128256, False, 70_553_706_496),
}


def published_config(name: str) -> dict[str, Any]:
    model_type, layers, hidden, feed_forward, heads, groups, vocabulary, tied, _ = PUBLISHED[name]
    (architecture,) = (family.architecture for family in FAMILIES if family.model_type == model_type)
    return {  # without head_dim: it is hidden / heads, or what transformers takes for it
        "architectures": [architecture],
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name):
    config = ModelConfig.parse(published_config(name), name)
    family, model_shape = family_of(config), ModelShape.of(config)
    pieces = list(family.pieces(model_shape))
    parts = sum(math.prod(shape) for piece in pieces for shape in piece.part_shapes)
    megatron = sum(math.prod(shape) for shape in {piece.entry.key: piece.global_shape for piece in pieces}.values())
    assert parts == megatron == model_shape.parameters == PUBLISHED[name][-1]


@pytest.mark.parametrize("name", ["Mistral-7B v0.3", "Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen3-4B", "Llama-3.1-8B"])
def test_names_and_shapes_match_transformers(name):
    config = published_config(name) | {"num_hidden_layers": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    parsed = ModelConfig.parse(config, name)
    model_shape = ModelShape.of(parsed)
    ours = {
        name: shape
        for piece in family_of(parsed).pieces(model_shape)
        for name, shape in zip(piece.names, piece.part_shapes, strict=True)
    }
    assert ours == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mistral"},
        {"model_type": "mistral", "architectures": ["MistralForSequenceClassification"]},
        {"model_type": "mistral", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "qwen2_vl", "architectures": ["Qwen2ForCausalLM"]},
    ],
)
def test_other_models_are_refused(config):
    with pytest.raises(InputError, match=r"^here describes .*; supported are MistralForCausalLM \(mistral\), Qwen2"):
        family_of(ModelConfig.parse(config, "here"))
