"""vLLM's arguments, derived from config.json alone: no vLLM needed."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import MistralConfig

from nemo_longpo.data_tools.engines.vllm_engine import VllmEngine, check_loaded, engine_arguments, expected_rope_theta
from nemo_longpo.data_tools.settings import EngineSettings, VllmSettings
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

CONFIG = {"max_position_embeddings": 4096, "vocab_size": 99, "torch_dtype": "bfloat16", "rope_theta": 1e6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def arguments(config=CONFIG, *, on_cpu=True, own=None, **common):
    parsed = ModelConfig.parse(config, "model/config.json")
    return engine_arguments(Path("model"), parsed, EngineSettings(**common), VllmSettings(**(own or {})), on_cpu=on_cpu)


def overridden(found, **own):
    config = MistralConfig(max_position_embeddings=4096, rope_theta=1e6, **own)
    return found["hf_overrides"](config)


def test_lengths_and_dtype_come_from_checkpoint():
    found = arguments(on_cpu=False)
    assert (found["max_model_len"], found["dtype"]) == (4096, "bfloat16")
    assert arguments(CONFIG | {"dtype": "float16"})["dtype"] == "float16"
    assert arguments({"max_position_embeddings": 8, "vocab_size": 9})["dtype"] == "float32"
    assert arguments(dtype="float32")["dtype"] == "float32"
    config = overridden(found)
    assert (config.max_position_embeddings, config.rope_theta) == (4096, 1e6)


def test_only_longer_lengths_change_the_model():
    assert overridden(arguments(own={"max_model_len": 8192})).max_position_embeddings == 8192
    assert overridden(arguments(own={"max_model_len": 100})).max_position_embeddings == 4096


def test_only_the_rope_base_changes():
    config = overridden(arguments(CONFIG | {"rope_scaling": YARN}, rope_theta=5e6), rope_scaling=YARN)
    assert (config.rope_theta, config.rope_scaling["factor"]) == (5e6, 4.0)


def test_memory_on_cpu_and_gpu():
    gpu = arguments(on_cpu=False, own={"gpu_memory_utilization": 0.5})
    assert (gpu["gpu_memory_utilization"], gpu["kv_cache_memory_bytes"]) == (0.5, None)
    assert not {"enforce_eager", "enable_chunked_prefill"} & set(gpu)
    assert arguments()["kv_cache_memory_bytes"] == 4 << 30
    assert arguments(own={"kv_cache_memory_bytes": 5})["kv_cache_memory_bytes"] == 5


@pytest.mark.parametrize(("own", "tokens", "pieces"), [({}, 4096, False), ({"max_num_batched_tokens": 512}, 512, True)])
def test_cpu_reads_prompts_whole_by_default(own, tokens, pieces):
    found = arguments(own=own)
    assert (found["max_num_batched_tokens"], found["enable_chunked_prefill"]) == (tokens, pieces)


@pytest.mark.parametrize(
    ("config", "common", "own", "message"),
    [
        ({"vocab_size": 9}, {}, {}, "model/config.json has no whole number for max_position_embeddings"),
        (CONFIG | {"torch_dtype": "int8"}, {}, {}, "is stored as int8; choose one of float32"),
        (CONFIG | {"rope_scaling": {"type": "longrope"}}, {"rope_theta": 1e7}, {}, "'longrope', whose base cannot"),
        (CONFIG | {"rope_scaling": {"type": "longrope"}}, {}, {"max_model_len": 8192}, "max_model_len to at most 4096"),
        (
            CONFIG | {"rope_scaling": {"type": "dynamic"}},
            {},
            {"max_model_len": 8192},
            "of type 'dynamic', which depend",
        ),
        (CONFIG | {"rope_parameters": {"full_attention": {}}}, {"rope_theta": 1e7}, {}, "of type 'several'"),
    ],
)
def test_impossible_settings_are_refused(config, common, own, message):
    with pytest.raises(InputError, match=message):
        arguments(config, own=own, **common)
    arguments(CONFIG | {"rope_scaling": YARN}, rope_theta=1e7, own={"max_model_len": 8192})


def loaded(max_model_len=4096, positions=4096, **rope):
    text = SimpleNamespace(max_position_embeddings=positions, rope_parameters=rope)
    return SimpleNamespace(max_model_len=max_model_len, hf_text_config=text)


def test_ignored_override_is_noticed():
    check_loaded(loaded(rope_theta=1e6), 4096, 1e6)
    check_loaded(loaded(), 4096, None)
    with pytest.raises(InputError, match=r"with rope_theta 10000\.0 instead of 1000000\.0"):
        check_loaded(loaded(rope_theta=1e4), 4096, 1e6)
    with pytest.raises(InputError, match=r"max_model_len 2048 and .* instead of 4096"):
        check_loaded(loaded(2048), 4096, None)
    with pytest.raises(InputError, match="max_position_embeddings 2048 instead of 4096"):
        check_loaded(loaded(positions=2048), 4096, None)


@pytest.mark.parametrize(
    ("config", "own", "expected"),
    [
        (CONFIG, None, 1e6),
        ({"rope_parameters": {"rope_theta": 5.0}}, None, 5.0),
        (CONFIG, 1e7, 1e7),
        ({}, None, None),
    ],
)
def test_expected_base(config, own, expected):
    parsed = ModelConfig.parse(config, "config.json")
    assert expected_rope_theta(parsed, EngineSettings(rope_theta=own)) == expected


def test_missing_vllm_is_explained(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the engine sets what vLLM would read
    with pytest.raises(InputError, match="run `make vllm-env`"):
        VllmEngine(tmp_path, EngineSettings(), VllmSettings())
