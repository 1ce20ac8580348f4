"""The judge's server: slow, busy, locked, gone, or not what it should be."""

import pytest
from support.fake_vllm import Fault

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.eval_settings import JudgeSettings
from nemo_longpo.evaluation.judge.client import Judge

SECRET = "sk-very-secret"
TALKS = [[{"role": "user", "content": f"Rate {number}"}] for number in range(12)]


def ask(judge, talks=TALKS):
    kept = {}
    judge.ask(talks, lambda index, reply: kept.update({index: reply}))
    return kept


def test_every_reply_belongs_to_its_question(server, judge):
    server.says = lambda prompt: f"{prompt}: [[{prompt.split()[1]}]]"
    for number in range(12):
        server.faults.append(Fault(seconds=(number * 7 % 5) / 100))
    kept = ask(judge(judge_concurrency=3))
    assert {index: reply.text for index, reply in kept.items()} == {i: f"Rate {i}: [[{i}]]" for i in range(12)}
    assert server.most_in_flight == 3
    assert (kept[0].model, kept[0].finish_reason, kept[0].usage["total_tokens"]) == ("strict-2026", "stop", 12)


def test_what_is_sent(server, judge):
    ask(judge(judge_max_tokens=99), TALKS[:1])
    assert server.bodies == [{"model": "strict", "messages": TALKS[0], "temperature": 0, "max_tokens": 99}]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=503, headers={"Retry-After": "0"}),
        Fault(status=429, headers={"Retry-After": "1"}),
        Fault(drop=True),
        Fault(seconds=2),
    ],
)
def test_faults_that_pass_are_tried_again(server, judge, fault):
    server.faults.extend([fault] * 2)
    assert len(ask(judge(judge_timeout=1 if fault.seconds else 60), TALKS[:4])) == 4
    assert len(server.bodies) == 6 or (fault.seconds and len(server.bodies) > 6), (
        "a busy machine answers late by itself"
    )


def test_a_server_that_stays_busy_is_one_sentence(server, judge):
    server.faults.extend([Fault(status=429)] * 99)
    with pytest.raises(InputError, match=r"failed 3 times.*status 429: the server's own words.*what was answered is k"):
        ask(judge(judge_retries=2, judge_concurrency=1))
    assert len(server.bodies) == 3


@pytest.mark.parametrize(("status", "words"), [(400, "refuses the request .status 400"), (404, "status 404")])
def test_a_refused_request_is_not_sent_again(server, judge, status, words):
    server.faults.extend([Fault(status=status)] * 99)
    with pytest.raises(InputError, match=words):
        ask(judge(), TALKS[:1])
    assert len(server.bodies) == 1


def test_what_was_rated_before_a_failure_is_kept(server, judge):
    server.on_request = lambda body, number: server.faults.append(Fault(status=400 if number == 6 else 200))
    kept = {}
    with pytest.raises(InputError):
        judge(judge_concurrency=1).ask(TALKS, lambda index, reply: kept.update({index: reply}))
    assert sorted(kept) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "edit",
    [
        lambda answer: [],
        lambda answer: {"choices": []},
        lambda answer: {"choices": [{"text": "[[7]]"}]},
        lambda answer: {"choices": {"message": 1}},
    ],
)
def test_another_protocol_is_named(server, judge, edit):
    server.faults.append(Fault(edit=lambda answer: edit(answer) or "no object"))
    with pytest.raises(InputError, match="does not answer as an OpenAI-compatible server"):
        ask(judge(), TALKS[:1])


def test_silence_is_an_empty_reply(server, judge):
    server.says = lambda prompt: None
    assert ask(judge(), TALKS[:1])[0].text == ""


def test_a_judge_that_is_not_there_is_one_sentence_at_once(server, judge):
    opened = judge()
    server.kill()
    with pytest.raises(InputError, match=r"the judge at http://127.0.0.1:\d+/v1 failed 3 times.*correct --judge-url"):
        opened.check()
    server.start()
    opened.check()


def test_the_key_goes_to_the_judge_and_nowhere_else(server, judge, monkeypatch, logged, capsys):
    """A server that repeats the key in its message does not bring it to the terminal."""
    monkeypatch.setenv("JUDGE_KEY", f" {SECRET}\n")
    monkeypatch.setenv("LONGPO_API_KEY", "of-another-server")
    monkeypatch.setenv("LONGPO_LOGIN", "me:too")
    opened = judge(judge_key_env="JUDGE_KEY")
    opened.check()
    judge().check()
    assert server.keys == {f"Bearer {SECRET}", None}
    server.faults.append(Fault(status=400, words=f"{SECRET} is wrong"))
    with pytest.raises(InputError, match=r"status 400.*\*\*\* is wrong") as caught:
        opened.check()
    said = f"{caught.value!r} {caught.value.__cause__} {opened.__dict__} {logged.getvalue()} {capsys.readouterr()}"
    assert SECRET not in said
    assert "POST" in logged.getvalue()


def test_a_refused_key_is_named_by_its_variable(server, judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    server.faults.extend([Fault(status=401)] * 2)
    with pytest.raises(InputError, match=r"refuses access \(status 401\); correct the key in JUDGE_KEY"):
        judge(judge_key_env="JUDGE_KEY").check()
    with pytest.raises(InputError, match=r"status 401.*with --judge-key-env"):
        judge().check()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"judge_model": None}, "name it with --judge-model"),
        ({"judge_url": None}, "--judge-url"),
        ({"judge_url": "ftp://me:secret@host"}, r"judge_url 'ftp://\*\*\*@host' is no address"),
        ({"judge_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no key"),
        ({"judge_key_env": "ODD_KEY"}, "ODD_KEY holds characters"),
        ({"judge_price": (1.0,)}, "judge_price takes two"),
        ({"judge_price": (1.0, -2.0)}, "judge_price takes two"),
    ],
)
def test_settings_at_fault(judge, monkeypatch, settings, words):
    monkeypatch.setenv("ODD_KEY", "clé")
    with pytest.raises(InputError, match=words):
        judge(**settings)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/chat/completions"])
def test_addresses(server, ending):
    url = server.url.removesuffix("/v1") + ending
    Judge(JudgeSettings(judge_model="strict", judge_url=url)).check()
    assert len(server.bodies) == 1


def test_a_path_of_its_own_is_kept(server):
    server.path = "/other/openai/chat/completions"
    url = server.url.replace("/v1", "/other/openai/")
    Judge(JudgeSettings(judge_model="strict", judge_url=url)).check()
    assert len(server.bodies) == 1
