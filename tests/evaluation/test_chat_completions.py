"""Models behind any OpenAI-compatible server: text in, text out; what they cannot be asked."""

import json
from datetime import date
from pathlib import Path

import pytest
from support import benchmark_data
from support.fake_judge import FakeJudge
from support.fake_vllm import Fault
from support.tiny_models import save_tiny

from nemo_longpo import cli
from nemo_longpo.costs import answering, devices
from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.data_tools.settings import EngineSettings, ServerSettings
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import evaluate, plan, suites, workload

pytestmark = pytest.mark.slow  # models and the harness are loaded

ASKED = [f"Where from was boat {number}?" for number in range(8)]


def says(message: str) -> str:
    """Right for boats 0 to 5, with more words than are needed."""
    number = int(message.split("boat ")[1][0])
    return f" It was {benchmark_data.PLACES[number]}. " if number < 6 else "I cannot say."


@pytest.fixture
def server():
    fake = FakeJudge(lambda message: "yes" if "are you there" in message else says(message))
    yield fake
    fake.kill()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = benchmark_data.write_short(tmp_path_factory.mktemp("data"), ["anatomy"], count=3)
    rows = [
        {"prompt": prompt, "answers": [benchmark_data.PLACES[number]], "answer_prefix": "From" if number == 7 else ""}
        for number, prompt in enumerate(ASKED)
    ]
    benchmark_data.write_rows(folder / "boats.jsonl", rows)
    return folder


def evaluation(server, data: Path, output: Path, *names: str, suite: str | None = None, **changed):
    return plan.Evaluation(
        **{
            "models": names or (f"big@{server.url}",),
            "benchmarks": tuple(suites.choose([suite or str(data / "boats.jsonl")])),
            "output": output,
            "engine": EngineOptions(EngineSettings(engine="server"), server=ServerSettings(retries=0, concurrency=1)),
            "data": data,
            "chat_completions": True,
            "day": date(2026, 1, 1),
        }
        | changed
    )


def questions(server):
    return [body for body in server.bodies if "are you there" not in body["messages"][-1]["content"]]


def test_messages_go_out_and_text_comes_back(server, data, tmp_path):
    asked = evaluation(server, data, tmp_path, system_prompt="Be short.")
    (scores,) = evaluate.evaluate(asked)
    (task,) = scores.tasks
    assert [sample.score for sample in task.samples] == [1.0] * 6 + [0.0] * 2
    assert task.samples[0].answer == "It was Oslo."
    assert scores.identity == {"chat_completions": "big", "server": server.url}
    bodies = questions(server)
    assert [body["messages"][-1]["content"] for body in bodies] == [*ASKED[:7], f"{ASKED[7]} From"]
    assert all(body["messages"][0] == {"role": "system", "content": "Be short."} for body in bodies)
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in bodies} == {("big", 0, 32)}
    assert evaluate.evaluate(asked) == [scores]
    assert len(questions(server)) == len(bodies)


def test_the_server_tells_its_template(server, data, tmp_path):
    told = {"enable_thinking": False}
    (scores,) = evaluate.evaluate(evaluation(server, data, tmp_path, template_kwargs=told))
    assert scores.identity["chat_template_kwargs"] == told
    assert [body["chat_template_kwargs"] for body in questions(server)] == [told] * len(ASKED)
    evaluate.evaluate(evaluation(server, data, tmp_path))
    assert len(questions(server)) == 2 * len(ASKED), "answers of a model that was told something else"
    assert "chat_template_kwargs" not in questions(server)[-1]


def test_what_was_answered_before_a_failure_is_kept(server, data, tmp_path):
    server.faults.extend([Fault(), Fault(), Fault(), Fault(), Fault(status=400)])
    with pytest.raises(InputError, match="the server's own words"):
        evaluate.evaluate(evaluation(server, data, tmp_path))
    assert len(questions(server)) == 4
    evaluate.evaluate(evaluation(server, data, tmp_path))
    assert sorted(body["messages"][-1]["content"] for body in questions(server)[4:]) == sorted(
        [*ASKED[3:7], f"{ASKED[7]} From"]
    )


def test_two_names_on_one_server_are_two_models(server, data, tmp_path):
    names = [f"before=small@{server.url}", f"after=big@{server.url}"]
    before, after = evaluate.evaluate(evaluation(server, data, tmp_path, *names))
    assert (before.label, after.label) == ("before", "after")
    assert [body["model"] for body in questions(server)] == ["small"] * 8 + ["big"] * 8


def test_log_likelihoods_are_refused_before_any_question(server, data, tmp_path):
    with pytest.raises(
        InputError, match="arc_challenge compares the log-likelihoods of choices, which chat completions"
    ):
        evaluate.evaluate(evaluation(server, data, tmp_path, suite="arc_challenge"))
    with pytest.raises(InputError, match="boats asks in plain text, and chat completions take messages"):
        evaluate.evaluate(evaluation(server, data, tmp_path, chat_template="never"))
    assert questions(server) == []


def test_lengths_are_those_of_a_tokenizer_of_ours(server, data, tmp_path):
    directory = save_tiny(tmp_path / "tokenizer", max_position_embeddings=50)
    with pytest.raises(
        InputError, match=r"boats: question 0 takes \d\d tokens with its answer, and the model reads 50"
    ):
        plan.prepare(evaluation(server, data, tmp_path, tokenizer=directory))
    with pytest.raises(InputError, match=r"ruler_vt is made to a length in tokens; .* with --tokenizer DIR"):
        plan.prepare(evaluation(server, data, tmp_path, suite="ruler_vt"))
    # The template adds what it adds on the other engines.
    directory = save_tiny(tmp_path / "long", max_position_embeddings=500)
    (asked,) = plan.prepare(evaluation(server, data, tmp_path, tokenizer=directory))
    tokenizer = asked.model.tokenizer
    text = tokenizer.apply_chat_template([{"role": "user", "content": ASKED[0]}], tokenize=False)
    assert asked.tasks[0].asked[0][0].prompt_tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    machine = answering.Machine(gpu=devices.find_gpu("h100-80gb"), gpus=1)
    (work,), _ = evaluate.estimate(evaluation(server, data, tmp_path), machine)
    assert (work.questions, work.prompt_tokens, work.seconds) == (8, 0, None)
    assert workload.table([work]).splitlines()[1].split()[-1] == "?"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["big"], "chat completions of big need the address of its server: write big@https://"),
        (["big@http://127.0.0.1:9/v1"], "the server of big at http://127.0.0.1:9/v1 failed 3 times, the last time"),
        (["big@http://127.0.0.1:9/v1", "--engine", "vllm"], "chat completions come from servers; leave out --engine"),
    ],
)
def test_a_command_that_cannot_work_says_so(data, tmp_path, capsys, monkeypatch, words, sentence):
    monkeypatch.setattr("nemo_longpo.data_tools.engines.server_pool.Pauses.after", lambda self, failures: 0.0)
    command = [
        "eval",
        *words,
        "--chat-completions",
        "--suite",
        str(data / "boats.jsonl"),
        "--output",
        str(tmp_path / "o"),
    ]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_the_key_comes_from_the_environment(server, data, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGPO_API_KEY", "a-key")
    seen = []
    server.on_request = lambda body, number: seen.append(number)
    evaluate.evaluate(evaluation(server, data, tmp_path))
    assert seen
    assert server.keys == {"Bearer a-key"}
    assert "a-key" not in json.dumps([path.read_text() for path in tmp_path.rglob("*.jsonl")])
