"""Fingerprints change with behaviour, and only then."""

import copy
import json

import pytest
from support.tiny_models import STYLES, save_tiny, tiny_tokenizer
from tokenizers import AddedToken
from transformers import AutoTokenizer

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.shards.fingerprint import (
    chat_template_hash,
    model_fingerprint,
    tokenizer_fingerprint,
)


def test_root_of_the_hub_cache(tmp_path):
    snapshot = tmp_path / "snapshots" / "41b61a33"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"it holds no config.json; .* give its snapshot {snapshot}"):
        ModelConfig.read(tmp_path)


@pytest.mark.parametrize("style", STYLES)
def test_fingerprint_ignores_padding_and_truncation(style, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer(style))
    expected = tokenizer_fingerprint(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=5)
    assert tokenizer_fingerprint(tokenizer) == expected
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding()
    assert tokenizer_fingerprint(tokenizer) == expected
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == expected


def test_chat_templates_differ():
    prints = {tokenizer_fingerprint(tiny_tokenizer(style)) for style in STYLES}
    templates = {chat_template_hash(tiny_tokenizer(style)) for style in STYLES}
    # v0.1 and v0.2 share their tokenizer, not their template.
    assert (len(prints), len(templates)) == (4, 5)


def test_fingerprint_follows_token_ids():
    tokenizer = tiny_tokenizer("mistral-v0.2")
    expected = tokenizer_fingerprint(tokenizer)
    added = copy.deepcopy(tokenizer)
    added.add_tokens(["village"])
    stripping = copy.deepcopy(tokenizer)
    stripping.add_tokens([AddedToken("</s>", special=True, lstrip=True)], special_tokens=True)
    other_end = copy.deepcopy(tokenizer)
    other_end.eos_token = "<s>"
    found = [tokenizer_fingerprint(changed) for changed in (added, stripping, other_end)]
    assert len({expected, *found}) == 4


def test_model_fingerprint(tmp_path):
    first = model_fingerprint(save_tiny(tmp_path / "first"))
    assert first == model_fingerprint(save_tiny(tmp_path / "same"))
    assert first.dtype == "float32"
    assert first.rope == {"rope_theta": 10000.0, "max_position_embeddings": 4096}
    assert model_fingerprint(tmp_path / "first", dtype="bfloat16").dtype == "bfloat16"
    other = model_fingerprint(save_tiny(tmp_path / "other", seed=1))
    assert other.weights_sha256 != first.weights_sha256
    stretched = model_fingerprint(save_tiny(tmp_path / "stretched", rope_theta=1e7))
    assert (stretched.weights_sha256, stretched.rope["rope_theta"]) == (first.weights_sha256, 1e7)


def test_directories_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"holds no config\.json"):
        model_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    with pytest.raises(InputError, match=r"holds no \.safetensors"):
        model_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not readable JSON"):
        model_fingerprint(tmp_path)
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2.5"))
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        chat_template_hash(tokenizer)
