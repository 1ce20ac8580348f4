"""What the fields of a `config.json` do to the computation: each is mapped, refused, or known not to matter."""

import inspect
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from nemo_longpo.conversion.families.name_tables import FAMILIES
from nemo_longpo.conversion.huggingface.config import check_supported, for_import, with_dtype
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.computed import COMPUTED
from nemo_longpo.model_directory.model_config import DEFAULTS, ModelConfig

# Fields of the configuration classes of transformers 4.57; 5 has the same, with the RoPE fields in rope_parameters.
MAPPED = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "tie_word_embeddings", "rms_norm_eps", "initializer_range"),
    *("max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
}
# Dropout is for training: evaluation never has it, LongPO trains without, and the field comes back as it was.
# `pretraining_tp` is not read any more; it split matrix products. The rest is about generation.
HARMLESS = {"attention_dropout", "pretraining_tp", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"}


def config(model_type: str, **fields: Any) -> dict[str, Any]:
    (family,) = (family for family in FAMILIES if family.model_type == model_type)
    sizes = {
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    no_window = {"sliding_window": None} if "sliding_window" in DEFAULTS[model_type] else {}
    return {"architectures": [family.architecture], "model_type": model_type, **sizes, **no_window, **fields}


def parse(fields: dict[str, Any]) -> ModelConfig:
    return ModelConfig.parse(fields, "here")


@pytest.mark.parametrize("config_class", [MistralConfig, Qwen2Config, LlamaConfig])
def test_all_transformers_fields_are_handled(config_class):
    fields = set(inspect.signature(config_class.__init__).parameters) - {"self", "kwargs"}
    assert fields <= MAPPED | HARMLESS | COMPUTED.keys()


@pytest.mark.parametrize(
    ("config_class", "model_type"), [(MistralConfig, "mistral"), (Qwen2Config, "qwen2"), (LlamaConfig, "llama")]
)
def test_defaults_are_those_of_transformers(config_class, model_type):
    """The value of a field that the file lacks."""
    theirs = {name: field.default for name, field in inspect.signature(config_class.__init__).parameters.items()}
    ours = {
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        **DEFAULTS[model_type],
    }
    assert {name: theirs[name] for name in ours} == ours
    assert "sliding_window" not in theirs.keys() - DEFAULTS[model_type].keys()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "gelu", "hidden_act is gelu; only silu"),
        ("attention_bias", True, "attention_bias is True; attention has no biases"),
        ("mlp_bias", True, "mlp_bias is True; feed-forward layers have no biases"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5; only heads that are rotated as a whole"),
        ("quantization_config", {"bits": 4}, "describes a quantized model"),
        ("auto_map", {"AutoModelForCausalLM": "modeling.Mine"}, "code that comes with a model is never run"),
        ("per_layer_config", {"0": {"hidden_size": 9}}, "only models whose layers are all alike"),
        ("layer_types", ["full_attention", "chunked_attention"], "layer_types names chunked_attention"),
        ("dtype", "float8", "dtype float8 is not one of float32, bfloat16, float16"),
        ("num_key_value_heads", 3, "4 attention heads do not divide over 3"),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}, "rope scaling of type dynamic is not supported"),
        ("rope_scaling", {"rope_type": "longrope", "factor": 2.0}, "rope scaling of type longrope is not supported"),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e4}}, "has no setting full_attention"),
        ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "no setting partial_rotary_factor"),
    ],
)
@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
def test_settings_megatron_computes_otherwise_are_refused(model_type, field, value, message):
    with pytest.raises(InputError, match="^here: .*" + message):
        check_supported(parse(config(model_type, **{field: value})))


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_dropout": 0.1, "pretraining_tp": 2, "use_cache": False},
        {"hidden_act": "swish"},
        {"attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0},
        {"quantization_config": None, "auto_map": {}, "rope_scaling": None, "head_dim": None, "layer_types": None},
        {"num_key_value_heads": None, "dtype": None},
        {"layer_types": ["full_attention"] * 3, "of_another_program": {"ü": 1}},
    ],
)
@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
def test_ineffective_settings_are_kept(model_type, fields):
    given = config(model_type, **fields)
    check_supported(parse(given))
    assert for_import(parse(given)).raw == given


SLIDES, FULL = "sliding_attention", "full_attention"
ALL_FULL = {"layer_types": [FULL] * 3}


@pytest.mark.parametrize(
    ("given", "window", "dropped"),
    [
        (config("mistral", sliding_window=16), 16, {"sliding_window": None}),
        (config("mistral", sliding_window=64), None, {}),
        (
            config("mistral", sliding_window=16, layer_types=[FULL, SLIDES, FULL]),
            16,
            {"sliding_window": None, **ALL_FULL},
        ),
        (config("llama", sliding_window=16), 16, {"sliding_window": None}),
        (config("qwen2", sliding_window=16), None, {}),
        (config("qwen2", sliding_window=16, use_sliding_window=False, max_window_layers=0), None, {}),
        (config("qwen2", sliding_window=16, use_sliding_window=True), None, {}),
        (config("qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=3), None, {}),
        (config("qwen2", sliding_window=16, use_sliding_window=False, max_window_layers=None), None, {}),
        (
            config("qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=None),
            16,
            {"use_sliding_window": False},
        ),
        (
            config("qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=2),
            16,
            {"use_sliding_window": False},
        ),
        (config("qwen2", sliding_window=16, use_sliding_window=True, layer_types=[FULL] * 3), None, {}),
        (
            config("qwen2", sliding_window=16, use_sliding_window=True, layer_types=[FULL, FULL, SLIDES]),
            16,
            {"use_sliding_window": False, **ALL_FULL},
        ),
    ],
)
def test_hiding_sliding_window_needs_a_decision(given, window, dropped):
    assert parse(given).active_window == window
    assert for_import(parse(given), full_attention=True).raw == given | dropped
    shorter = for_import(parse(given), max_length=16)
    assert shorter.raw == given | {"max_position_embeddings": 16}
    if window:
        with pytest.raises(InputError, match="sliding window of 16 tokens, shorter than the 64 positions"):
            for_import(parse(given))


@pytest.mark.parametrize("window", [{}, {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}])
def test_dual_chunks_need_full_attention(window):
    """Qwen2.5-1M: an engine that has this attention would compute another model than the one that was trained."""
    chunks = {"chunk_size": 32, "local_size": 8, "original_max_position_embeddings": 32}
    given = config("qwen2", **window, dual_chunk_attention_config=chunks)
    with pytest.raises(InputError, match=r"^here: dual_chunk_attention_config .*--full-attention"):
        for_import(parse(given))
    dropped = for_import(parse(given), full_attention=True)
    assert "dual_chunk_attention_config" not in dropped.raw
    assert dropped.active_window is None
    none = config("qwen2", dual_chunk_attention_config=None)
    assert for_import(parse(none)).raw == none


@pytest.mark.parametrize(
    ("model_type", "groups"), [("mistral", 8), ("qwen2", 32), ("llama", 32)], ids=["mistral", "qwen2", "llama"]
)
def test_key_value_heads_that_transformers_assumes(model_type, groups):
    """A file that names none has the class's default; null means one for each head."""
    given = config(model_type, num_attention_heads=32)
    del given["num_key_value_heads"]
    theirs = {"mistral": MistralConfig, "qwen2": Qwen2Config, "llama": LlamaConfig}[model_type]
    assert ModelShape.of(parse(given)).kv_heads == theirs(num_attention_heads=32).num_key_value_heads == groups
    null = given | {"num_key_value_heads": None}
    assert ModelShape.of(parse(null)).kv_heads == theirs(**null).num_key_value_heads == 32


def test_key_value_heads_must_divide_heads():
    given = config("mistral", num_attention_heads=4)
    del given["num_key_value_heads"]
    with pytest.raises(InputError, match="4 attention heads do not divide over 8 key-value heads"):
        check_supported(parse(given))


def test_window_that_transformers_assumes():
    """Mistral's configuration class has 4,096 for a file that names none."""
    given = config("mistral", max_position_embeddings=8192)
    del given["sliding_window"]
    with pytest.raises(InputError, match="sliding window of 4096 tokens"):
        for_import(parse(given))
    assert for_import(parse(given), full_attention=True).raw == given | {"sliding_window": None}


@pytest.mark.parametrize(
    ("fields", "found", "changed"),
    [
        ({}, "float32", {"torch_dtype": "float16"}),
        ({"torch_dtype": "bfloat16"}, "bfloat16", {"torch_dtype": "float16"}),
        ({"dtype": "bfloat16"}, "bfloat16", {"dtype": "float16"}),
        ({"dtype": "bfloat16", "torch_dtype": "bfloat16"}, "bfloat16", {"dtype": "float16", "torch_dtype": "float16"}),
        ({"dtype": None, "torch_dtype": "bfloat16"}, "bfloat16", {"dtype": "float16", "torch_dtype": "float16"}),
    ],
)
def test_both_names_of_the_dtype(fields, found, changed):
    assert parse(fields).stored_dtype == found
    assert with_dtype(parse(fields), "float16").raw == fields | changed


def test_positions_need_a_base_that_tells_them_apart():
    given = parse(config("llama", rope_theta=1e4, head_dim=64))
    with pytest.raises(InputError, match=r"^here: 9,000,000 tokens cannot be told apart: .*; give --rope-theta of "):
        for_import(given, max_length=9_000_000)
    assert for_import(given, theta=1e9, max_length=9_000_000).max_position_embeddings == 9_000_000
