"""What a run is said to take, what its bar shows, and that texts which are not held change nothing."""

import fcntl
import gc
import json
import weakref
from array import array
from dataclasses import replace
from datetime import date

import pytest
from lm_eval.api import instance
from support.tiny_models import save_tiny, sentences

from nemo_longpo import atomic, live_status
from nemo_longpo.costs import answering, devices, model_shape
from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.data_tools.runner import Usage
from nemo_longpo.data_tools.settings import EngineSettings, TransformersSettings
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import evaluate, language_model, plan, prompts, suites, workload

pytestmark = pytest.mark.slow  # models and the harness are loaded

GPU = devices.find_gpu("h100-80gb")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def evaluation(model, tmp_path_factory):
    """Two books with four questions each, and one question that is too long."""
    folder = tmp_path_factory.mktemp("questions")
    books = [" ".join(sentences()[start : start + 60]) for start in (0, 100)]
    rows = [
        {"prompt": f"{books[number % 2]} What does number {number} follow?", "answers": ["boat"]} for number in range(8)
    ]
    rows.append({"prompt": " ".join(books) * 8, "answers": ["boat"]})
    (folder / "books.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return plan.Evaluation(
        models=(f"tiny={model}",),
        benchmarks=tuple(suites.choose([str(folder / "books.jsonl")])),
        output=folder / "out",
        engine=EngineOptions(EngineSettings(), TransformersSettings(batch_tokens=4096)),
        too_long="drop",
        day=date(2026, 1, 1),
    )


def test_a_dry_run_counts_what_a_run_takes(evaluation, monkeypatch):
    machine = answering.Machine(gpu=GPU, gpus=1)
    (before,), prices = evaluate.estimate(evaluation, machine)
    assert prices == []
    assert not evaluation.output.exists()
    assert (before.questions, before.dropped, before.requests, before.answered) == (8, 1, 8, 0)
    assert before.most_new_tokens == 8 * 32
    used = []
    monkeypatch.setattr(workload.Progress, "__call__", lambda self, usage: used.append(usage))
    evaluate.evaluate(evaluation)
    assert before.prompt_tokens == sum(usage.prompt_tokens for usage in used)
    assert before.computed_tokens == sum(usage.prompt_tokens - usage.cached_prompt_tokens for usage in used)
    assert before.computed_tokens < 0.5 * before.prompt_tokens
    (after,), _ = evaluate.estimate(evaluation, machine)
    assert (after.requests, after.answered, after.prompt_tokens, after.seconds) == (8, 8, 0, 0.0)
    # Half of the answers: those of one book, or of both.
    (path,) = (evaluation.output / "answers").iterdir()
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    (half,), _ = evaluate.estimate(evaluation, machine)
    assert (half.answered, half.most_new_tokens) == (4, 4 * 32)
    assert 0 < half.seconds < before.seconds


def test_two_runs_do_not_share_an_output(evaluation):
    evaluation.output.mkdir(exist_ok=True)
    with (
        atomic.locked(evaluation.output, fcntl.LOCK_EX),
        pytest.raises(InputError, match=r"another longpo eval writes to .*; wait for it, or give another --output"),
    ):
        evaluate.evaluate(evaluation)


def test_texts_that_are_made_again_give_the_same_scores(evaluation, tmp_path, monkeypatch):
    made = []
    original = prompts.HeldTexts.take

    def refuse(self, size):
        made.append(original(self, size))
        return False

    held = evaluate.evaluate(evaluation)
    monkeypatch.setattr(prompts.HeldTexts, "take", refuse)
    (asked,) = plan.prepare(evaluation)
    assert made == [True]
    assert asked.tasks[0].task.task is None
    assert evaluate.evaluate(evaluation) == held


def test_texts_beyond_the_room_are_let_go(evaluation, monkeypatch):
    monkeypatch.setattr(prompts.HeldTexts, "room", 1000, raising=False)
    monkeypatch.setattr(prompts.HeldTexts.__init__, "__defaults__", (1000,))
    alive = []
    original = prompts.prompts_of

    def watch(task, *rest, **options):
        alive.append(weakref.ref(task.task))
        return original(task, *rest, **options)

    monkeypatch.setattr(prompts, "prompts_of", watch)
    asked = plan.prepare(evaluation)
    gc.collect()
    assert [found() for found in alive] == [None]
    assert len(asked[0].tasks[0].requests) == 8


def test_choices_share_their_context_and_what_does_not_fit_takes_no_room():
    context = "Where is the boat?"
    question = [instance.Instance("loglikelihood", {}, (context, choice), 0) for choice in (" in Oslo", " in Lima")]
    size = prompts.size_of(question, {"a": array("i", [1, 2, 3])})
    assert size == len(context) + 2 * 8 + 3 * 4
    held = prompts.HeldTexts(2 * size)
    assert held.take(size)
    assert held.room == size
    assert not held.take(size + 1)
    assert held.take(size)
    assert not held.take(size)


def test_a_prompt_is_tokenised_once(evaluation, tmp_path, monkeypatch):
    """Also where the answers are asked for by another language model than the one that made the prompts."""
    texts = []
    original = language_model.EngineLM.tok_encode

    def count(self, text, *rest, **options):
        texts.append(text)
        return original(self, text, *rest, **options)

    monkeypatch.setattr(language_model.EngineLM, "tok_encode", count)
    evaluate.evaluate(replace(evaluation, output=tmp_path / "out"))
    assert (len(texts), len(set(texts))) == (9, 9)


def test_room_of_a_task_that_is_let_go_is_free_for_the_next(evaluation, tmp_path):
    """There is room for one question of the first file, or for the second file."""
    (asked,) = plan.prepare(evaluation)
    whole = prompts.HeldTexts()
    left = whole.room
    assert whole.take(prompts.size_of(next(iter(asked.tasks[0].requests.values())), {}))
    (tmp_path / "few.jsonl").write_text('{"prompt": "Where is the boat?", "answers": ["Oslo"]}\n')
    few = suites.choose([str(tmp_path / "few.jsonl")])
    both = replace(evaluation, benchmarks=(*evaluation.benchmarks, *few), output=tmp_path / "out")
    room = prompts.HeldTexts.__init__.__defaults__
    prompts.HeldTexts.__init__.__defaults__ = (left - whole.room,)
    try:
        (asked,) = plan.prepare(both)
    finally:
        prompts.HeldTexts.__init__.__defaults__ = room
    assert [task.task.task is None for task in asked.tasks] == [True, False]


def test_operations_of_shared_prompts_equal_a_sum_over_rows():
    """Each row of the layers costs its matrices and the rows before it, whoever computed these."""
    shape = model_shape.MODELS["qwen2.5-0.5b"]
    machine = answering.Machine(gpu=GPU, gpus=2)
    segments = [(0, 1000), (1000, 1010), (1000, 1300)]
    rows = [row for start, end in segments for row in range(start, end)]
    by_row = 2 * shape.layers * shape.layer_matrices * len(rows)
    by_row += sum(4 * shape.layers * shape.query_size * (row + 0.5) for row in rows)
    operations = machine.reading_flops(shape, segments)
    assert operations == pytest.approx(by_row, rel=1e-9)
    assert machine.reading_seconds(operations) == pytest.approx(operations / (2 * 989e12 * 0.4))


def test_time_of_answers_is_memory_traffic():
    shape = model_shape.MODELS["mistral-7b"]
    machine = answering.Machine(gpu=GPU, gpus=1)
    asked = 50 * [(131_000, 100)]
    keys_and_values = 131_100 * 2 * 2 * 32 * 1024
    at_once = int((0.9 * 79.1 * 2**30 - 2 * shape.parameters) // keys_and_values)
    assert at_once == 3
    traffic = 50 * 100 * (2 * shape.parameters / at_once + keys_and_values)
    assert machine.writing_seconds(shape, asked) == pytest.approx(traffic / (3.35e12 * 0.6))
    with pytest.raises(
        InputError, match=r"1 x h100-80gb cannot hold the model and a prompt of 131,000 tokens \(175 GiB"
    ):
        machine.writing_seconds(model_shape.MODELS["qwen2.5-72b"], asked)


def test_what_was_answered_before_is_no_speed(tmp_path, monkeypatch):
    weights = {"known": 9000, "first": 400, "second": 600}
    status = live_status.StatusFile(tmp_path, "evaluation", total=20000, unit="token")
    with workload.Progress("model", weights, ["known"], status, before=10000) as progress:
        now = progress.bar.start_t
        monkeypatch.setattr(progress.bar, "_time", lambda: now)
        now += 100  # while the model loads
        progress.begin()
        now += 4
        progress.answered("first")
        shown = progress.bar.format_dict
        assert (shown["n"], shown["total"], shown["initial"], shown["elapsed"]) == (9400, 10000, 9000, 4)
        assert "9.40k/10.0k [00:04<00:06, 100tok/s" in str(progress.bar)
        progress.answered("of a conversation")
        progress.finish(["first", "second"])
        assert progress.bar.n == 10000
        status.update(now=True)
        assert live_status.read_status(tmp_path).counts().startswith("20,000 of 20,000 tokens")
        progress(Usage(2, 1000, 250, 7))
        assert "25% of prompts shared" in str(progress.bar)


def test_table_names_every_task_and_the_sum():
    work = {
        "model": "after", "benchmark": "ruler_vt", "length": 4096, "questions": 500, "dropped": 0, "shortened": 0,
        "requests": 500, "answered": 250, "prompt_tokens": 1_000_000, "computed_tokens": 900_000,
        "most_new_tokens": 7500, "flops": 1e15, "seconds": 90.0,
    }  # fmt: skip
    text = workload.table([workload.Work(**work), workload.Work(**(work | {"length": 8192, "seconds": 5400.0}))])
    lines = [line.split() for line in text.splitlines()]
    expected = "after ruler_vt 4,096 500 0 0 50% 1,000,000 900,000 7,500 90 s"
    assert " ".join(lines[1]) == expected
    assert lines[2][-2:] == ["90", "min"]
    assert lines[3] == ["after", "all", "1,000", "0", "0", "50%", "2,000,000", "1,800,000", "15,000", "91.5", "min"]
