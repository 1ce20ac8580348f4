"""Shapes from names, Hugging Face directories and checkpoints."""

import json
from dataclasses import replace

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from nemo_longpo.costs.model_shape import MODELS, ModelShape, load_shape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

HUGGING_FACE = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 421,
    "tie_word_embeddings": True,
}
SMALL = ModelShape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, head_size=16, vocab=421, tied=True, bias=True)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-72b", 72_706_203_648),
        ("qwen3-0.6b", 751_632_384 - 151936 * 1024),  # the file on the Hub holds the tied table twice, as that of 1.7B
        ("qwen3-1.7b", 2_031_739_904 - 151936 * 2048),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_published_parameter_counts(name, parameters):
    assert load_shape(name).parameters == parameters


def test_hugging_face_directory_and_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(HUGGING_FACE))
    assert load_shape(str(tmp_path)) == load_shape(str(file)) == SMALL
    file.write_text(json.dumps({**HUGGING_FACE, "model_type": "mistral", "head_dim": 24, "num_key_value_heads": None}))
    assert load_shape(str(tmp_path)) == replace(SMALL, kv_heads=4, head_size=24, bias=False)


FAMILIES = {"mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}


@pytest.mark.parametrize("kind", FAMILIES)
def test_heads_that_transformers_assumes(kind, tmp_path):
    file = tmp_path / "config.json"
    given = {**HUGGING_FACE, "model_type": kind, "hidden_size": 64, "num_attention_heads": 32}
    del given["num_key_value_heads"]
    file.write_text(json.dumps(given))
    assumed, found = FAMILIES[kind](hidden_size=64, num_attention_heads=32), load_shape(str(file))
    assert found.kv_heads == assumed.num_key_value_heads
    assert found.head_size == (getattr(assumed, "head_dim", None) or 2)


def test_head_size_defaults_to_hidden_over_heads():
    config = {name: value for name, value in HUGGING_FACE.items() if name != "num_key_value_heads"}
    config |= {"model_type": "llama", "head_dim": None}
    shape = ModelShape.of(ModelConfig.parse(config, "config.json"))
    assert (shape.head_size, shape.kv_heads) == (16, 4)
    config |= {"head_dim": 24, "num_key_value_heads": 1}
    assert ModelShape.of(ModelConfig.parse(config, "config.json")).head_size == 24


@pytest.mark.parametrize(("record", "section"), [("context/model.yaml", "config"), ("run_config.yaml", "model")])
def test_checkpoint(tmp_path, record, section):
    (tmp_path / "context").mkdir()
    (tmp_path / record).write_text(
        f"{section}:\n  num_layers: 2\n  hidden_size: 64\n  ffn_hidden_size: 96\n  num_attention_heads: 4\n"
        "  num_query_groups: 2\n  kv_channels: 16\n  vocab_size: 421\n  add_qkv_bias: true\n"
        "  share_embeddings_and_output_weights: true\n  qk_layernorm: true\n"
    )
    assert load_shape(str(tmp_path)) == replace(SMALL, qk_norm=True)
    (tmp_path / record).write_text(f"{section}: 1")
    with pytest.raises(InputError, match=f"{record} holds no model configuration"):
        load_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is not readable JSON"),
        ("[]", "should hold a JSON object, not a list"),
        (
            json.dumps({**HUGGING_FACE, "hidden_size": "64"}),
            "config.json: field 'hidden_size' should be a whole number from 1 to 2147483647, not '64'",
        ),
        (
            json.dumps({**HUGGING_FACE, "vocab_size": True}),
            "field 'vocab_size' should be a whole number from 1 to",
        ),
        (json.dumps({**HUGGING_FACE, "num_key_value_heads": 3}), "4 attention heads do not divide over 3"),
    ],
)
def test_bad_field_is_named_with_its_file(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        load_shape(str(tmp_path))


def test_root_of_the_hub_cache(tmp_path):
    snapshot = tmp_path / "snapshots" / "41b61a33"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(HUGGING_FACE))
    with pytest.raises(InputError, match=f"root in the Hub's cache, give its snapshot {snapshot}"):
        load_shape(str(tmp_path))
    assert load_shape(str(snapshot)) == SMALL


def test_unknown_model_lists_known_ones():
    with pytest.raises(InputError, match=r"mistral-8b is neither a known model \(mistral-7b, .*nor a Hugging Face"):
        load_shape("mistral-8b")
    assert MODELS
