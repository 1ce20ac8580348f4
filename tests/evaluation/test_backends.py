"""Servers as a backend, and what is refused in one sentence before any work, on every engine."""

import json
from datetime import date

import pytest
from support import benchmark_data
from support.fake_vllm import FakeVllm, Fault, logp, written
from support.tiny_models import save_tiny

from nemo_longpo import cli
from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.data_tools.settings import EngineSettings, ServerSettings
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import evaluate, models, plan, suites
from nemo_longpo.evaluation.language_model import Answers

pytestmark = pytest.mark.slow  # models and the harness are loaded


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), vocab_size=501)  # as the server


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = benchmark_data.write_short(tmp_path_factory.mktemp("data"), ["anatomy"], count=3)
    rows = [{"prompt": f"{benchmark_data.BOOK} Where from was day {n}?", "answers": ["Oslo"]} for n in range(6)]
    benchmark_data.write_rows(folder / "books.jsonl", rows)
    return folder


@pytest.fixture
def server():
    fake = FakeVllm()
    yield fake
    fake.kill()


def evaluation(named, data, output, **server):
    server = {"timeout": 20.0, "retries": 0, "concurrency": 2} | server
    return plan.Evaluation(
        models=tuple(named),
        benchmarks=tuple(suites.choose([str(data / "books.jsonl"), "arc_challenge"])),
        output=output,
        engine=EngineOptions(EngineSettings(engine="server"), server=ServerSettings(**server)),
        data=data,
        day=date(2026, 1, 1),
    )


def test_a_server_is_asked_in_token_ids_and_for_what_is_missing_alone(model, data, server, tmp_path):
    # One after the other, so that what is known when the server fails is certain.
    asked = evaluation([f"tiny={model}"], data, tmp_path, base_url=(server.url,), concurrency=1)
    server.faults.extend([Fault(), Fault(), Fault(), Fault(status=400)])
    with pytest.raises(InputError, match="the server's own words"):
        evaluate.evaluate(asked)
    kept = [path.read_text().count("\n") for path in (tmp_path / "answers").iterdir()]
    assert kept[0] >= 2
    before = len(server.bodies)
    (scores,) = evaluate.evaluate(asked)
    books, arc = scores.tasks
    assert len(server.bodies) - before == 6 + sum(len(sample.answer) for sample in arc.samples) - kept[0]
    (opened,) = models.open_models(asked.models, asked.engine, day=asked.day, chat_template=True, max_length=None)
    answers = Answers(tmp_path / "answers", opened.identity)
    generated = [body for body in server.bodies if "prompt_logprobs" not in body]
    for body in generated[-3:]:
        ids, _ = written(body["prompt"], 32)
        text = opened.tokenizer.decode([token for token in ids if token != 2], skip_special_tokens=True).strip()
        assert text in {sample.answer for sample in books.samples}
    scored = [body["prompt"] for body in server.bodies if "prompt_logprobs" in body]
    assert len(scored) == sum(len(sample.answer) for sample in arc.samples)
    tails = set()
    for prompt in scored:
        logps = [logp(prompt, position) for position in range(len(prompt))]
        tails |= {round(sum(logps[-tokens:]), 3) for tokens in range(1, 80)}
    assert {round(value, 3) for sample in arc.samples for value in sample.answer} <= tails
    assert len(answers._found) == 6 + len(scored)


def test_every_model_has_servers_of_its_own(model, data, server, tmp_path):
    other = FakeVllm(name="other")
    try:
        named = [f"before={model}@{server.url}", f"after={model}@{other.url}"]
        opened = models.open_models(
            named, evaluation([], data, tmp_path).engine, day=date(2026, 1, 1), chat_template=True, max_length=None
        )
        assert [(own.label, own.directory, own.engine.server.base_url) for own in opened] == [
            ("before", model, (server.url,)),
            ("after", model, (other.url,)),
        ]
    finally:
        other.kill()
    with pytest.raises(InputError, match=r"a server holds one model; .* before=MODEL@http"):
        plan.prepare(evaluation([f"a={model}", f"b={model}"], data, tmp_path, base_url=(server.url,)))


def test_the_length_that_a_server_has_counts(model, data, tmp_path):
    short = FakeVllm(max_model_len=300)
    try:
        with pytest.raises(InputError, match=r"books: question 0 takes [\d,]+ tokens with its answer, .* reads 300"):
            plan.prepare(evaluation([str(model)], data, tmp_path, base_url=(short.url,)))
    finally:
        short.kill()


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        ("missing", [], "changed does not exist; give a Hugging Face model directory"),
        ("without template", [], "has no chat template, which the questions of these benchmarks need"),
        ("", ["--suite", "ruler_vt", "--lengths", "8192"], "has 4,096 positions, fewer than the 8,192 tokens"),
        ("", ["--suite", "ruler_vy"], "--suite ruler_vy is not known; choose among"),
        ("", ["--max-num-seqs", "8"], "max_num_seqs is a setting of engine vllm, but the engine is transformers"),
        ("", ["--engine", "server"], "engine server needs base_url"),
        ("", ["--engine", "server", "--base-url", "http://127.0.0.1:9/v1", "--retries", "0"], "no server answers"),
        ("", ["--dry-run", "--gpu", "h1000"], "--gpu h1000 is not known; choose one of a100-80gb"),
    ],
)
def test_refused_before_any_work(model, data, tmp_path, capsys, change, words, sentence):
    directory = tmp_path / "changed"
    if change == "without template":
        directory.mkdir()
        for path in model.iterdir():
            if not path.name.startswith("chat_template"):
                (directory / path.name).write_bytes(path.read_bytes())
        settings = directory / "tokenizer_config.json"
        found = json.loads(settings.read_text())
        found.pop("chat_template", None)
        settings.write_text(json.dumps(found))
    elif change != "missing":
        directory = model
    suite = [] if "--suite" in words else ["--suite", data / "books.jsonl"]
    output = tmp_path / "output"
    assert cli.main(list(map(str, ["eval", directory, *suite, "--output", output, *words]))) == 2
    said = capsys.readouterr().err
    assert [sentence in line for line in said.splitlines() if line.startswith("longpo")] == [True], said
    assert not output.exists()
