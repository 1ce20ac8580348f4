"""The suite chat as `longpo eval` runs it, on a small model, up to results.json."""

import json
from dataclasses import replace

import pytest
from support.fake_judge import CATEGORIES
from support.tiny_models import save_tiny

from nemo_longpo.cli import main
from nemo_longpo.costs import answering, devices
from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.data_tools.settings import EngineSettings, TransformersSettings
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import evaluate, plan, suites
from nemo_longpo.evaluation.eval_settings import JudgeSettings
from nemo_longpo.evaluation.results import report

pytestmark = pytest.mark.slow  # models and the harness are loaded


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def chat(model, data, server, tmp_path):
    def evaluation(**changed):
        short = tuple(replace(row, max_new_tokens=4) for row in suites.choose(["chat"]))
        settings = {
            "models": (f"before={model}",),
            "benchmarks": short,
            "output": tmp_path / "output",
            "engine": EngineOptions(EngineSettings(dtype="float32"), TransformersSettings(device="cpu")),
            "data": data,
            "judge": JudgeSettings(judge_model="strict", judge_url=server.url, judge_price=(3.0, 15.0)),
        }
        return plan.Evaluation(**(settings | changed))

    return evaluation


def test_from_files_to_results(chat, server, tmp_path):
    """The same bytes twice, the second time without asking anything but whether the judge is there."""
    server.says = lambda prompt: f"[[{len(prompt) % 10 + 1}]]"
    written = []
    for _ in range(2):
        evaluation = chat()
        summary, content = report.write(evaluation.output, evaluate.evaluate(evaluation), evaluation.recorded())
        written.append((evaluation.output / "results.json").read_bytes())
    assert written[0] == written[1]
    ratings = {}
    for line in next((tmp_path / "output" / "judgements").glob("*.jsonl")).read_text().splitlines():
        row = json.loads(line)[1]
        ratings.setdefault(row["benchmark"], []).append(row["score"])
    for task in summary.tasks:
        own = ratings[task.name]
        assert task.means["before"].mean == pytest.approx(10 * sum(own) / len(own))
        assert task.scale == 10
    text = json.dumps(content)
    assert '"name": "strict"' in text
    assert '"judge_model": "strict"' in text
    assert server.url not in text
    assert (len(ratings["mt_bench"]), len(ratings["longbench_chat_en"])) == (2 * len(CATEGORIES), 2)
    assert len(server.judged) == 12


def test_judge_is_asked_for_before_any_work(chat, server, tmp_path):
    evaluation = chat(judge=JudgeSettings(judge_model="strict", judge_url=server.url, judge_retries=0))
    server.kill()
    with pytest.raises(InputError, match=r"the judge at http.* failed once"):
        evaluate.evaluate(evaluation)
    assert not (tmp_path / "output").exists()
    with pytest.raises(InputError, match="name it with --judge-model"):
        evaluate.evaluate(chat(judge=JudgeSettings()))


def test_conversations_need_the_chat_template(chat):
    with pytest.raises(InputError, match="mt_bench is made of conversations"):
        plan.prepare(chat(chat_template="never"))


def test_prices_need_no_judge(chat):
    evaluation = chat(judge=JudgeSettings(judge_price=(3.0, 15.0)))
    machine = answering.Machine(gpu=devices.find_gpu("h100-80gb"), gpus=1)
    works, (first, second) = evaluate.estimate(evaluation, machine)
    assert [work.questions for work in works] == [len(CATEGORIES), 2]
    assert first.startswith("before: MT-Bench: 10 judgements by the judge, which reads ")
    assert second.startswith("before: LongBench-Chat (EN): 2 judgements")
    assert second.endswith("at --judge-price")


def test_a_model_behind_chat_completions_takes_turns(chat, server, tmp_path):
    """The server is model and judge. Without a tokenizer, the price is by characters."""
    server.says = lambda prompt: "[[8]]" if prompt.startswith("Rate") else f"so much for {prompt.split()[-1]}"
    evaluation = chat(
        models=(f"big@{server.url}",),
        benchmarks=tuple(suites.choose(["mt_bench"])),
        engine=EngineOptions(EngineSettings(engine="server")),
        chat_completions=True,
    )
    (price,) = evaluate.estimate(evaluation, answering.Machine(gpu=devices.find_gpu("h100-80gb"), gpus=1))[1]
    assert "tokens (at 4 characters each, answers empty" in price
    (scores,) = evaluate.evaluate(evaluation)
    assert {sample.score for sample in scores.tasks[0].samples} == {0.8}
    talks = [[said["content"] for said in body["messages"]] for body in server.bodies if len(body["messages"]) == 3]
    assert len(talks) == len(CATEGORIES)
    assert ["Tell of boat 81.", "so much for 81.", "And of lamp 81?"] in talks


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--judge-model", "strict"], "--judge-url"),
        (["--judge-model", "strict", "--judge-url", "nowhere"], "judge_url 'nowhere' is no address of a server"),
        (
            ["--judge-model", "strict", "--judge-url", "http://127.0.0.1:9", "--judge-key-env", "NO_KEY"],
            "the environment variable NO_KEY holds no key for the judge",
        ),
        (["--judge-price", "1"], "judge_price takes two prices"),
    ],
)
def test_command_line_refuses_in_one_sentence(model, data, tmp_path, capsys, words, sentence):
    output = tmp_path / "output"
    command = ["eval", str(model), "--suite", "chat", "--data", str(data), "--output", str(output), *words]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not output.exists()
