"""Compare the vLLM engine with plain Hugging Face forwards in float32, and check what it must refuse."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from nemo_longpo.data_tools.engines.engine import Sampling
from nemo_longpo.data_tools.engines.vllm_engine import VllmEngine
from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.data_tools.runner.progress import Usage
from nemo_longpo.data_tools.settings import EngineSettings, VllmSettings
from nemo_longpo.errors import InputError

CACHE_BYTES = 128 << 20


def token_ids(index, length):
    return [20 + (7 * index + position * position // 3) % 300 for position in range(length)]


SEQUENCES = [token_ids(index, length) for index, length in enumerate((9, 700, 4, 260))]
SPANS = [[(3, 6), (8, 9)], [(1, 2), (130, 700)], [(1, 4)], [(128, 129), (200, 260)]]


def load(directory, *, own=None, **common):
    settings = VllmSettings(**({"kv_cache_memory_bytes": CACHE_BYTES} | (own or {})))
    return VllmEngine(directory, EngineSettings(**common), settings)


def ignore(_: Usage) -> None:
    pass


@pytest.fixture(scope="module", params=["mistral", "qwen2"])
def directory(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def engine(directory):
    return load(directory)


def direct_logps(directory, ids, rope_theta=None):
    """log p(x_t | x_<t) for every t ≥ 1, from one forward."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    if rope_theta is not None:
        config.rope_parameters["rope_theta"] = rope_theta
    model = AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32).eval()
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logps.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def check_scores(engine, directory, sequences, spans, rope_theta=None):
    for ids, wanted, scores in zip(sequences, spans, engine.score(sequences, spans, ignore), strict=True):
        expected = direct_logps(directory, ids, rope_theta)
        for (start, end), found in zip(wanted, scores, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[start - 1 : end - 1], atol=1e-4)


def test_runs_as_the_checkpoint_is(engine):
    """float32 stays float32, which vLLM's own "auto" does not do."""
    assert (engine.dtype, engine.context_length, engine.max_length) == ("float32", 4096, 4096)


def test_scores_equal_a_direct_forward(engine, directory):
    check_scores(engine, directory, SEQUENCES, SPANS)


def test_greedy_generation_equals_step_by_step_forwards(engine, directory):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    expected = []
    for prompt in SEQUENCES:
        ids = list(prompt)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    found = engine.generate(SEQUENCES, Sampling(max_new_tokens=8, stop_ids=frozenset()), [0] * 4, ignore)
    assert [completion.ids for completion in found] == expected
    assert {completion.finish_reason for completion in found} == {"length"}
    stop = expected[1][3]
    stopped = engine.generate(SEQUENCES, Sampling(max_new_tokens=8, stop_ids=frozenset({stop})), [0] * 4, ignore)[1]
    assert stopped.ids == expected[1][: expected[1].index(stop)]
    assert stopped.finish_reason == "stop"


def test_only_the_given_tokens_stop_an_answer(engine, directory):
    """The end of sequence of config.json does not, unless it is given. These models end often."""
    end = json.loads((directory / "config.json").read_text())["eos_token_id"]
    sampling = Sampling(max_new_tokens=200, stop_ids=frozenset(), temperature=1.0)
    (whole,) = engine.generate(SEQUENCES[:1], sampling, [3], ignore)
    assert (len(whole.ids), whole.finish_reason) == (200, "length")
    assert end in whole.ids
    sampling = Sampling(max_new_tokens=200, stop_ids=frozenset({end}), temperature=1.0)
    (cut,) = engine.generate(SEQUENCES[:1], sampling, [3], ignore)
    assert (cut.ids, cut.finish_reason) == (whole.ids[: whole.ids.index(end)], "stop")


def test_every_given_token_stops(engine):
    """Chat models declare several end tokens: the first one ends the answer and is left out."""
    sampling = Sampling(max_new_tokens=60, stop_ids=frozenset(), temperature=1.0)
    whole = [completion.ids for completion in engine.generate(SEQUENCES, sampling, range(4), ignore)]
    ends = frozenset({whole[0][20], whole[1][0], whole[2][7]})
    found = engine.generate(SEQUENCES, Sampling(max_new_tokens=60, stop_ids=ends, temperature=1.0), range(4), ignore)
    for ids, completion in zip(whole, found, strict=True):
        stop = next((at for at, token in enumerate(ids) if token in ends), None)
        assert (completion.ids, completion.finish_reason) == (ids[:stop], "length" if stop is None else "stop")
    assert [completion.finish_reason for completion in found[:3]] == ["stop"] * 3


def test_draws_depend_only_on_prompt_and_seed(engine):
    """Draws do not depend on other requests, the cache, or prompts in the same step."""
    sampling = Sampling(max_new_tokens=20, stop_ids=frozenset(), temperature=1.0, top_p=0.95)
    prompts = [token_ids(index, 900 + 300 * index) for index in range(6)]
    together = engine.generate(prompts, sampling, list(range(6)), ignore)
    alone = [engine.generate([prompts[index]], sampling, [index], ignore)[0] for index in (4, 0, 5)]
    assert alone == [together[index] for index in (4, 0, 5)]
    assert engine.generate(prompts, sampling, list(range(6)), ignore) == together
    assert engine.generate(prompts[:1], sampling, [9], ignore) != together[:1]
    assert together[0].ids != together[1].ids


def test_shared_beginnings_come_from_the_cache(mistral):
    """Turns of two documents, given alternately to a cache that holds one of them: results in the order of the
    prompts, usage as it happens."""
    block = 2 * 2 * 128 * 32 * 4  # bytes: two layers, keys and values, tokens, channels of the one head, float32
    own = {"max_model_len": 1152, "max_num_seqs": 1, "kv_cache_memory_bytes": 12 * block}
    engine = load(mistral, own=own)
    prompts = [[*token_ids(turn % 2, 1000), 50 + turn] for turn in range(6)]
    used = []
    sampling = Sampling(max_new_tokens=4, stop_ids=frozenset())
    found = engine.generate(prompts, sampling, [0] * 6, used.append)
    # Blocks of 128 tokens: 7 of 1001 tokens are shared by the second and third turn of each document.
    assert sum(usage.cached_prompt_tokens for usage in used) == 2 * 2 * 7 * 128
    assert [usage.requests for usage in used] == [1] * 6
    assert sum(usage.prompt_tokens for usage in used) == 6 * 1001
    assert sum(usage.generated_tokens for usage in used) == 6 * 4
    for index in (0, 5):
        assert engine.generate([prompts[index]], sampling, [0], ignore)[0] == found[index]


def test_rope_base_beyond_model_length(mistral):
    """Another base, and 8,192 positions for a model of 4,096, in pieces of 512 tokens."""
    engine = load(mistral, rope_theta=1e6, own={"max_model_len": 8192, "max_num_batched_tokens": 512})
    assert (engine.context_length, engine.max_length) == (4096, 8192)
    long = token_ids(1, 6000)
    sequences, spans = [*SEQUENCES, long], [*SPANS, [(5000, 5100), (5900, 6000)]]
    check_scores(engine, mistral, sequences, spans, rope_theta=1e6)
    own = direct_logps(mistral, SEQUENCES[1])
    assert np.abs(own - direct_logps(mistral, SEQUENCES[1], 1e6)).max() > 0.05
    # Greedily, the pieces do no harm; with seeds vLLM would crash.
    engine.generate([long], Sampling(max_new_tokens=2, stop_ids=frozenset()), [0], ignore)
    with pytest.raises(InputError, match="max_num_batched_tokens is below max_model_len 8192"):
        engine.generate([long], Sampling(max_new_tokens=2, stop_ids=frozenset(), temperature=1.0), [0], ignore)


def test_bfloat16_is_near(mistral):
    engine = load(mistral, dtype="bfloat16")
    assert engine.dtype == "bfloat16"
    (scores,) = engine.score(SEQUENCES[1:2], SPANS[1:2], ignore)
    difference = np.abs(scores[1] - direct_logps(mistral, SEQUENCES[1])[129:])
    assert 1e-4 < difference.mean() < 0.1


def test_too_long_requests_are_refused(engine):
    full = token_ids(0, 4096)
    with pytest.raises(InputError, match=r"request of 4097 tokens, .* exceeds the engine's max_model_len of 4096"):
        engine.generate([full[:4000]], Sampling(max_new_tokens=97, stop_ids=frozenset()), [0], ignore)
    with pytest.raises(InputError, match="set max_model_len to 4097"):
        engine.score([full], [[(5, 9)]], ignore)
    (fitting,) = engine.generate([full[:4000]], Sampling(max_new_tokens=2, stop_ids=frozenset()), [0], ignore)
    assert fitting.finish_reason == "length"
    assert len(engine.score([full[:4095]], [[(4000, 4095)]], ignore)[0][0]) == 95


def test_unloadable_files_are_refused(mistral, tmp_path):
    with pytest.raises(InputError, match=r"holds no config.json"):
        load(tmp_path)
    shutil.copy(mistral / "config.json", tmp_path)
    with pytest.raises(InputError, match=f"vLLM cannot run {tmp_path}: .*weights"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"vLLM cannot run .* max_num_batched_tokens \(3\)") as refusal:
        load(mistral, own={"max_num_batched_tokens": 3})
    assert "\n" not in str(refusal.value)


def test_answers_follow_a_json_schema(mistral):
    """At any temperature, with a random model; an answer that is cut is the beginning of valid JSON."""
    chat = load_chat(mistral)
    engine = VllmEngine(mistral, EngineSettings(), VllmSettings(kv_cache_memory_bytes=CACHE_BYTES), writes_json=True)
    assert engine.writes_json
    schema = {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": 30},
        "minItems": 3,
        "maxItems": 3,
    }
    prompts = [chat.prompt(f"Boat {number}.") for number in range(4)]
    sampling = Sampling(max_new_tokens=600, stop_ids=chat.stop_ids, temperature=1.0, top_p=0.95, json_schema=schema)
    found = engine.generate(prompts, sampling, range(4), ignore)
    for completion in found:
        assert completion.finish_reason == "stop"
        items = json.loads(chat.text(completion.ids), strict=False)
        assert len(items) == 3
        assert all(1 <= len(item) <= 30 for item in items)
    assert engine.generate(prompts[2:3], sampling, [2], ignore) == found[2:3]
    (cut,) = engine.generate(prompts[:1], replace(sampling, max_new_tokens=12), [0], ignore)
    assert (cut.ids, cut.finish_reason) == (found[0].ids[:12], "length")
    free = engine.generate(prompts[:1], replace(sampling, json_schema=None), [0], ignore)
    assert free != found[:1]
