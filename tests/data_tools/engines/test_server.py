"""What the server engine asks and reads, and servers that are wrong for it."""

from base64 import b64encode
from dataclasses import replace

import numpy as np
import pytest
from support.fake_vllm import STOP, VOCAB_SIZE, Fault, logp, written
from support.server_requests import DRAW, GREEDY, PROMPTS, expected, generate, ignore

from nemo_longpo.data_tools.engines.engine import Completion, Sampling
from nemo_longpo.data_tools.runner.progress import Usage
from nemo_longpo.errors import InputError


def test_answers_match_prompts_in_any_order(servers, load):
    (server,) = servers()
    for _ in PROMPTS:
        server.faults.append(Fault(seconds=DRAW.random() / 20))
    finished = []
    assert generate(load(server, concurrency=4), tick=finished.append) == [expected(prompt) for prompt in PROMPTS]
    assert server.most_in_flight == 4
    assert sorted(body["prompt"] for body in server.bodies) == sorted(PROMPTS)
    lengths = [len(expected(prompt).ids) for prompt in PROMPTS]
    total = Usage(len(PROMPTS), sum(map(len, PROMPTS)), 3 * len(PROMPTS), sum(lengths))
    assert Usage(*(sum(getattr(usage, name) for usage in finished) for name in vars(total))) == total


def test_model_and_server_describe_themselves(servers, load):
    (server,) = servers(max_model_len=777)
    engine = load(server)
    assert (engine.context_length, engine.max_length) == (2048, 777)
    assert (engine.vocab_size, engine.dtype) == (VOCAB_SIZE, "bfloat16")


def test_scores_are_those_of_the_spans(servers, load):
    spans = [[(1, 3), (len(prompt) - 1, len(prompt))] for prompt in PROMPTS]
    found = load(*servers(2)).score(PROMPTS, spans, ignore)
    for prompt, prompt_spans, scores in zip(PROMPTS, spans, found, strict=True):
        for (start, end), span_scores in zip(prompt_spans, scores, strict=True):
            assert span_scores.dtype == np.float32
            wanted = [logp(prompt, position) for position in range(start, end)]
            np.testing.assert_allclose(span_scores, wanted, rtol=1e-6)


def test_server_defaults_are_not_used(servers, load):
    (server,) = servers()
    engine = load(server)
    generate(engine, PROMPTS[:1], Sampling(max_new_tokens=6, stop_ids=frozenset({STOP, 9}), temperature=0.7, top_p=0.9))
    generate(engine, PROMPTS[:1])
    sampled, greedy = server.bodies
    assert sampled | {"temperature": 0.0, "top_p": 1.0, "stop_token_ids": [STOP]} == greedy | {"seed": 0}
    assert greedy == {
        "model": "tiny",
        "prompt": PROMPTS[0],
        "max_tokens": 6,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [STOP],
        "ignore_eos": True,
        "return_token_ids": True,
    }


def test_json_is_requested_by_schema(servers, load):
    (server,) = servers()
    engine = load(server)
    assert engine.writes_json
    schema = {"type": "array", "items": {"type": "string"}}
    generate(engine, PROMPTS[:1], replace(GREEDY, json_schema=schema))
    generate(engine, PROMPTS[:1])
    held, free = server.bodies
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert held == free | {"response_format": form}
    server.faults.append(Fault(status=400))
    with pytest.raises(InputError, match=r"status 400\): the server's own words; .* give --no-structured-output$"):
        generate(engine, PROMPTS[:1], replace(GREEDY, json_schema=schema))


def test_turns_of_a_document_share_a_server(servers, load):
    documents = [[3 + index] * 20 for index in range(24)]
    prompts = [[*document, 100 + turn] for turn in range(4) for document in documents]
    both = servers(2)
    found = generate(load(*both, concurrency=1, prefix_tokens=16), prompts)
    assert found == [expected(prompt) for prompt in prompts]
    seen = [[body["prompt"] for body in server.bodies] for server in both]
    assert all(seen)
    for prompts_of_server in seen:
        assert prompts_of_server == sorted(prompts_of_server)
    assert not {prompt[0] for prompt in seen[0]} & {prompt[0] for prompt in seen[1]}


def test_server_with_another_model_is_refused(servers, load):
    first, second = servers(2)
    for name, value, old in (("name", "other", "tiny"), ("max_model_len", 512, 4096)):
        setattr(second, name, value)
        with pytest.raises(InputError, match="all servers must serve the same model"):
            load(first, second)
        setattr(second, name, old)
    engine = load(first, second)
    first.name = second.name = "other"
    with pytest.raises(InputError, match="serves other with max_model_len 4096, where tiny with 4096 is expected"):
        generate(engine)


def test_refused_request_shows_the_servers_message(servers, load):
    (server,) = servers()
    engine = load(server)
    server.faults.append(Fault(status=400))
    with pytest.raises(InputError, match=r"completions refuses the request \(status 400\): the server's own words$"):
        generate(engine, PROMPTS[:1])
    assert len(server.bodies) == 1


def test_the_key_is_sent_and_never_shown(servers, load, monkeypatch, logged):
    (server,) = servers()
    monkeypatch.delenv("LONGPO_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "second-secret\n")
    load(server)
    monkeypatch.setenv("LONGPO_API_KEY", "first-secret")
    engine = load(server)
    assert server.keys == {"Bearer second-secret", "Bearer first-secret"}
    server.faults.extend([Fault(status=500), Fault(status=401)])
    with pytest.raises(
        InputError, match=r"refuses access \(status 401\); put the server's key into LONGPO_API_KEY"
    ) as e:
        generate(engine, PROMPTS[:1])
    assert logged.getvalue()
    assert "secret" not in logged.getvalue() + str(e.value)
    monkeypatch.setenv("LONGPO_API_KEY", "two\nlines-secret")
    with pytest.raises(InputError, match="holds characters that no header can carry") as e:
        load(server)
    assert "secret" not in str(e.value)


def test_login_in_an_address_is_never_shown(servers, load, monkeypatch, logged):
    (server,) = servers()
    monkeypatch.setenv("LONGPO_API_KEY", "key")
    engine = load(server.url.replace("//", "//me:p%40ss-secret@"), server.url)
    assert server.keys == {"Basic " + b64encode(b"me:p@ss-secret").decode()}
    server.faults.extend([Fault(status=500), Fault(status=401)])
    with pytest.raises(InputError, match="refuses access") as refused:
        generate(engine, PROMPTS[:1])
    with pytest.raises(InputError, match=r"base_url 'http://\*\*\*@host:x' is no address") as wrong:
        load("http://me:secret/@host:x")
    assert logged.getvalue()
    assert "secret" not in logged.getvalue() + str(refused.value) + str(wrong.value)
    monkeypatch.setenv("LONGPO_LOGIN", "you:there")
    server.keys.clear()
    load(server)
    assert server.keys == {"Basic " + b64encode(b"you:there").decode()}


def test_oversized_answer_is_refused(servers, load):
    (server,) = servers()
    engine = load(server)
    server.faults.append(Fault(edit=choice_with(text="x" * (5 << 20))))
    with pytest.raises(InputError, match=r"sends more than the 4,\d\d\d,\d\d\d bytes that an answer"):
        generate(engine, PROMPTS[:1])


def choice_with(**changes):
    def edit(answer):
        answer["choices"][0] |= changes

    return edit


WRONG_COMPLETIONS = {
    "no token ids": (choice_with(token_ids=None), r"no token ids; it must be vLLM 0\.10\.2 or newer"),
    "ends run over": (choice_with(token_ids=[5, STOP, 6, STOP], finish_reason="stop"), "behind the end token 2"),
    "an end at the limit": (choice_with(token_ids=[5] * 5 + [STOP], finish_reason="length"), "behind the end token 2"),
    "foreign ids": (choice_with(token_ids=[VOCAB_SIZE, STOP]), "outside the vocabulary of 500"),
    "other prompt": (choice_with(prompt_token_ids=[1]), "another prompt"),
    "other end": (choice_with(finish_reason="repetition"), "for reason 'repetition'"),
    "stop string": (choice_with(finish_reason="stop", token_ids=[5, 6]), "after 2 of 6 tokens for reason 'stop'"),
    "own limit": (choice_with(finish_reason="length", token_ids=[5, 6]), "after 2 of 6 tokens for reason 'length'"),
    "two choices": (lambda answer: answer["choices"].append({}), "does not answer as vLLM's does"),
    "no object": (lambda answer: [1], "does not answer as vLLM's does"),
}


@pytest.mark.parametrize("name", WRONG_COMPLETIONS)
def test_wrong_completions_are_refused(name, servers, load):
    edit, message = WRONG_COMPLETIONS[name]
    (server,) = servers()
    engine = load(server)
    server.faults.append(Fault(edit=edit))
    with pytest.raises(InputError, match=message):
        generate(engine, PROMPTS[:1])


WRONG_SCORES = {
    "none": (choice_with(prompt_logprobs=None), "no prompt_logprobs"),
    "too few": (choice_with(prompt_logprobs=[None]), "1 log-probs for 4 tokens"),
    "other tokens": (
        choice_with(prompt_logprobs=[None, *({str(token): {"logprob": -1.0}} for token in (4, 9, 6))]),
        "other tokens than were sent, from position 2 on",
    ),
    "no number": (
        choice_with(prompt_logprobs=[None, *({str(token): {"logprob": None}} for token in (4, 5, 6))]),
        "returns no number as log-prob of position 1",
    ),
    "no object": (choice_with(prompt_logprobs=[None, *({str(token): 1} for token in (4, 5, 6))]), "returns no number"),
}


@pytest.mark.parametrize(
    "usage", [None, [], {"prompt_tokens_details": 3}, {"prompt_tokens_details": {"cached_tokens": "x"}}]
)
def test_cached_tokens_are_optional(usage, servers, load):
    (server,) = servers()
    engine, seen = load(server), []
    server.faults.append(Fault(edit=lambda answer: answer | {"usage": usage}))
    assert generate(engine, PROMPTS[:1], tick=seen.append) == [expected(PROMPTS[0])]
    assert seen[0].cached_prompt_tokens == 0


@pytest.mark.parametrize("name", WRONG_SCORES)
def test_wrong_scores_are_refused(name, servers, load):
    edit, message = WRONG_SCORES[name]
    (server,) = servers()
    engine = load(server)
    server.faults.append(Fault(edit=edit))
    with pytest.raises(InputError, match=message):
        engine.score([[3, 4, 5, 6]], [[(2, 4)]], ignore)


def test_other_kinds_of_servers_are_refused(servers, load):
    (server,) = servers(max_model_len=None)
    with pytest.raises(InputError, match="does not state a model and its max_model_len; the server must be vLLM's"):
        load(server)


def test_every_end_token_stops(servers, load):
    """The whole answers continue after most of the tokens, so an unrequested stop token would show."""
    (server,) = servers()
    ends = frozenset({STOP, *range(3, 100)})
    found = generate(load(server), sampling=Sampling(max_new_tokens=6, stop_ids=ends))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids, _ = written(prompt, 6)
        stop = next((at for at, token in enumerate(ids) if token in ends), None)
        assert completion == Completion(ids[:stop], "length" if stop is None else "stop")
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    assert 0 < sum(len(completion.ids) for completion in found) < sum(len(expected(prompt).ids) for prompt in PROMPTS)


def test_address_formats(servers, load):
    (server,) = servers()
    root = server.url.removesuffix("/v1")
    engine = load(root, f"{root}/", f" {root}/v1/")
    assert generate(engine, PROMPTS[:3]) == [expected(prompt) for prompt in PROMPTS[:3]]
    assert len(server.bodies) == 3


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "http://", "http://host:x", "http://host/v1?a=b"])
def test_bad_addresses_are_refused(url, load):
    with pytest.raises(InputError, match="is no address of a server"):
        load(url)


def test_addresses_and_sizes_are_needed(load, served_model):
    with pytest.raises(InputError, match="needs base_url"):
        load()
    (served_model / "config.json").write_text('{"vocab_size": 9}')
    with pytest.raises(InputError, match="has no whole number for max_position_embeddings"):
        load("http://127.0.0.1:1")
