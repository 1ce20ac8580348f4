"""The engine against plain Hugging Face calls: log-probs, greedy and sampled generation, batching."""

import json
import shutil

import numpy as np
import pytest
import torch
from support.tiny_models import save_tiny, tiny_tokenizer

from nemo_longpo.data_tools.engines.engine import Sampling
from nemo_longpo.data_tools.engines.hf_engine import TransformersEngine, _pick
from nemo_longpo.data_tools.runner.progress import Usage
from nemo_longpo.data_tools.settings import EngineSettings, TransformersSettings
from nemo_longpo.errors import InputError

SEQUENCES = [[1, *range(20, 20 + length)] for length in (9, 30, 4, 17)]
SPANS = [[(3, 6), (8, 10)], [(1, 2), (29, 31)], [(1, 5)], [(10, 18)]]


def load(directory, **settings):
    return TransformersEngine(directory, EngineSettings(), TransformersSettings(**settings))


def ignore(_: Usage) -> None:
    pass


@pytest.fixture(scope="module", params=["mistral", "qwen2"])
def directory(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("engine"), request.param)


def direct_model(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.mark.parametrize("batch_tokens", [1, 60, 16384])
def test_scores_equal_a_direct_forward(directory, batch_tokens):
    engine = load(directory, batch_tokens=batch_tokens)
    model = direct_model(directory)
    finished = []
    for sequence, spans, scores in zip(SEQUENCES, SPANS, engine.score(SEQUENCES, SPANS, finished.append), strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
        for (start, end), found in zip(spans, scores, strict=True):
            expected = [logps[position - 1, sequence[position]].item() for position in range(start, end)]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(usage.requests for usage in finished) == len(SEQUENCES)


def test_greedy_generation_equals_step_by_step_forwards(directory):
    engine = load(directory)
    model = direct_model(directory)
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


def test_sampling_does_not_depend_on_the_batch(directory):
    sampling = Sampling(max_new_tokens=12, stop_ids=frozenset(), temperature=1.0, top_p=0.95)
    engine = load(directory)
    together = engine.generate(SEQUENCES, sampling, [1, 2, 3, 4], ignore)
    alone = [engine.generate([SEQUENCES[i]], sampling, [i + 1], ignore)[0] for i in (2, 0, 3, 1)]
    assert [together[i] for i in (2, 0, 3, 1)] == alone
    again = load(directory, batch_tokens=1).generate(SEQUENCES, sampling, [1, 2, 3, 4], ignore)
    assert again == together
    other_seed = engine.generate(SEQUENCES[:1], sampling, [9], ignore)
    assert other_seed[0].ids != together[0].ids


def test_batches_close_when_lengths_part(directory):
    """A document's chosen prompts (around 500 tokens) and rejected ones (around 3,000), with answers of 200."""
    rng = np.random.default_rng(5)
    lengths = [int(length) for length in np.concatenate([rng.normal(700, 60, 40), rng.normal(3200, 900, 40)]).clip(300)]
    made = load(directory).batches(lengths)
    assert sorted(index for batch in made for index in batch) == list(range(80))
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in made]
    assert max(padded) <= 16384
    assert sum(padded) <= 1.15 * sum(lengths)
    assert all(wide <= 1.15 * sum(lengths[index] for index in batch) for wide, batch in zip(padded, made, strict=True))
    # Without need no batch is closed: what is alike stays together.
    assert load(directory).batches([10, 11, 10, 10]) == [[1, 0, 2, 3]]
    assert load(directory, batch_tokens=25).batches([10] * 5) == [[0, 1], [2, 3], [4]]
    assert load(directory, batch_tokens=50).batches([99, 10]) == [[0], [1]]


def test_every_answer_ticks_when_it_ends(directory):
    """Each answer ticks with its own tokens before its batch ends."""
    engine = load(directory)
    free = engine.generate(SEQUENCES, Sampling(max_new_tokens=8, stop_ids=frozenset()), [0] * 4, ignore)
    stop = free[1].ids[3]
    finished = []
    found = engine.generate(SEQUENCES, Sampling(max_new_tokens=8, stop_ids=frozenset({stop})), [0] * 4, finished.append)
    expected = {(len(prompt), len(answer.ids)) for prompt, answer in zip(SEQUENCES, found, strict=True)}
    assert {(usage.prompt_tokens, usage.generated_tokens) for usage in finished} == expected
    assert [usage.requests for usage in finished] == [1] * 4


def test_draws_follow_the_distribution_within_top_p():
    logits = torch.tensor([0.5, 0.1, 0.3, 0.1]).log().expand(20000, 4)
    draws = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    everything = _pick(logits, Sampling(max_new_tokens=1, stop_ids=frozenset(), temperature=1.0), draws)
    assert torch.allclose(everything.bincount(minlength=4) / 20000, torch.tensor([0.5, 0.1, 0.3, 0.1]), atol=0.02)
    nucleus = _pick(logits, Sampling(max_new_tokens=1, stop_ids=frozenset(), temperature=1.0, top_p=0.75), draws)
    assert torch.allclose(nucleus.bincount(minlength=4) / 20000, torch.tensor([0.625, 0.0, 0.375, 0.0]), atol=0.02)


def test_bfloat16_is_a_choice(directory):
    engine = TransformersEngine(directory, EngineSettings(dtype="bfloat16"), TransformersSettings())
    assert engine.dtype == "bfloat16"
    assert load(directory).dtype == "float32"
    assert engine.score(SEQUENCES[:1], SPANS[:1], ignore)[0][0].dtype == np.float32


@pytest.mark.parametrize("scaling", [None, {"rope_type": "yarn", "factor": 4.0}])
def test_rope_settings_of_transformers_5(scaling, tmp_path):
    """transformers 4.57 alone would run such a model with a base of 10,000 and without its scaling."""
    four = save_tiny(tmp_path / "four", "qwen2", rope_theta=500.0, rope_scaling=scaling)
    five = shutil.copytree(four, tmp_path / "five")
    config = json.loads((four / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    plain = tmp_path / "plain"
    shutil.copytree(four, plain)
    (plain / "config.json").write_text(json.dumps(config))
    config["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": 500.0}
    (five / "config.json").write_text(json.dumps(config))

    def scores(directory, **common):
        engine = TransformersEngine(directory, EngineSettings(**common), TransformersSettings())
        return engine.score(SEQUENCES[1:2], [[(1, 31)]], ignore)[0][0]

    expected = scores(four)
    np.testing.assert_array_equal(scores(five), expected)
    for other in (scores(plain), scores(five, rope_theta=100.0)):
        assert np.abs(other - expected).max() > 0.01


def test_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no config.json"):
        load(tmp_path)
    tiny_tokenizer("qwen2.5").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path)
