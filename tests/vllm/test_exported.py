"""What `longpo convert` exports, in transformers 5 and in vLLM, without an edit by hand: RoPE settings, greedy tokens,
log-probs and token ids as in the transformers that training uses (exported_models.py)."""

import json

import numpy as np
import pytest
import torch

from nemo_longpo.data_tools.engines.engine import Sampling
from nemo_longpo.data_tools.engines.vllm_engine import VllmEngine
from nemo_longpo.data_tools.settings import EngineSettings, VllmSettings

MODELS = ("mistral-two-iterations", "mistral-of-transformers-5", "qwen2-yarn", "llama-kept-scaling")


@pytest.fixture(scope="module")
def record(exported):
    return json.loads((exported / "record.json").read_text())


@pytest.fixture(params=MODELS)
def case(request, exported, record):
    """The directory and its expected results."""
    return exported / request.param, record["models"][request.param]


def test_every_model_is_tested(record):
    assert set(record["models"]) == set(MODELS)


def test_transformers_5(case, record):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory, expected = case
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert model.config.rope_parameters == expected["rope"]
    assert model.config.max_position_embeddings == expected["length"]
    last = torch.tensor(record["prompts"][-1:])
    with torch.no_grad():
        logps = model(last).logits[:, :-1].log_softmax(-1).gather(-1, last[:, 1:, None])[0, :, 0]
    np.testing.assert_allclose(logps[-len(expected["scores"]) :], expected["scores"], atol=1e-5)
    for prompt, greedy in zip(record["prompts"], expected["greedy"], strict=True):
        mask = torch.ones(1, len(prompt))
        ids = torch.tensor([prompt])
        found = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=len(greedy), eos_token_id=None)
        assert found[0, len(prompt) :].tolist() == greedy
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer(record["text"]).input_ids == expected["text_ids"]
    assert tokenizer.apply_chat_template(record["conversation"], tokenize=False) == expected["chat"]
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == expected["special"]


def test_vllm(case, record):
    directory, expected = case
    engine = VllmEngine(directory, EngineSettings(), VllmSettings(kv_cache_memory_bytes=64 << 20))
    loaded = engine._engine.model_config
    assert loaded.hf_text_config.rope_parameters == expected["rope"]
    assert (engine.dtype, engine.max_length) == ("float32", expected["length"])
    sampling = Sampling(max_new_tokens=len(expected["greedy"][0]), stop_ids=frozenset())
    answers = engine.generate(record["prompts"], sampling, [0] * len(record["prompts"]), lambda _: None)
    assert [answer.ids for answer in answers] == expected["greedy"]
    last = record["prompts"][-1]
    ((scores,),) = engine.score([last], [[(len(last) - len(expected["scores"]), len(last))]], lambda _: None)
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-4)
