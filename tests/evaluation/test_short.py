"""The short benchmarks against the harness's own run of its own tasks on the same files, and what is refused."""

import argparse
import json
import random
import shutil
from pathlib import Path

import pytest
import yaml
from support import benchmark_data
from support.evaluation_models import engine_lm, open_one, preparation
from support.tiny_models import save_tiny

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import plan, prompts, short
from nemo_longpo.evaluation.suites import BENCHMARKS

pytestmark = pytest.mark.slow  # models and the harness are loaded

SEED = 7
NAMES = ("mmlu", "arc_challenge", "hellaswag", "winogrande")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_one(save_tiny(tmp_path_factory.mktemp("model"), "llama", max_position_embeddings=8192))


@pytest.fixture(scope="module")
def subjects():
    import lm_eval.tasks

    files = Path(lm_eval.tasks.__file__).parent.glob("mmlu/default/mmlu_*.yaml")
    return [yaml.safe_load(file.read_text())["dataset_name"] for file in sorted(files)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, subjects):
    return benchmark_data.write_short(tmp_path_factory.mktemp("data"), subjects)


@pytest.fixture(scope="module")
def own_run(tmp_path_factory, model, data):
    """Prompts and scores of the harness itself: its HFLM, its tasks included from its package, its way to run them."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    package = Path(lm_eval.tasks.__file__).parent
    tasks = tmp_path_factory.mktemp("tasks")
    for name, include, splits in (
        ("mmlu_anatomy", "mmlu/default/mmlu_anatomy.yaml", ("test", "dev")),
        ("arc_challenge", "arc/arc_challenge.yaml", ("test", "train")),
        ("hellaswag", "hellaswag/hellaswag.yaml", ("validation", "train")),
        ("winogrande", "winogrande/default.yaml", ("validation", "train")),
    ):
        folder = data / name.removesuffix("_anatomy")
        files = {split: folder / f"{split}.jsonl" for split in splits}
        if name == "mmlu_anatomy":
            rows = {"test": benchmark_data.mmlu(["anatomy"], 4), "dev": benchmark_data.mmlu(["anatomy"], 5, 100)}
            files = {split: benchmark_data.write_rows(tasks / f"{split}.jsonl", rows[split]) for split in splits}
        changed = {
            "include": str(package / include),
            "task": f"own_{name}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
            "num_fewshot": BENCHMARKS[name.removesuffix("_anatomy")].num_fewshot,
        }
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(changed))

    def run(chat_template: bool) -> dict[str, dict]:
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(model.directory), device="cpu", dtype="float32", batch_size=1, max_length=8192),
            tasks=["own_mmlu_anatomy", *(f"own_{name}" for name in NAMES[1:])],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            apply_chat_template=chat_template,
            fewshot_random_seed=SEED,
            bootstrap_iters=0,
        )
        return {
            name: {"samples": found["samples"][f"own_{task}"], "results": found["results"][f"own_{task}"]}
            for name, task in (("mmlu", "mmlu_anatomy"), *((name, name) for name in NAMES[1:]))
        }

    return run


def ask(name, model, data, answers, *, chat_template=False):
    language_model = engine_lm(model, answers)
    tasks = short.build(BENCHMARKS[name], preparation(model, data))
    (task,) = [task for task in tasks if task.task.config.task in (name, "mmlu_anatomy")]
    made = prompts.prompts_of(
        task,
        language_model,
        model.max_length,
        chat_template=chat_template,
        system_prompt=None,
        samples=None,
        seed=SEED,
        too_long="refuse",
    )
    return made, prompts.answer(made, language_model)


@pytest.mark.slow
@pytest.mark.parametrize("chat_template", [False, True])
def test_prompts_and_scores_are_those_of_the_harness(own_run, model, data, tmp_path, chat_template):
    expected = own_run(chat_template)
    for name in NAMES:
        made, samples = ask(name, model, data, tmp_path, chat_template=chat_template)
        assert len(samples) == len(expected[name]["samples"]) == 4
        for number, (own, theirs) in enumerate(zip(samples, expected[name]["samples"], strict=True)):
            assert [request.args for request in made.requests[number]] == theirs["arguments"], name
            logps = [found[0][0] for found in theirs["resps"]]
            assert own.answer == pytest.approx(logps, abs=1e-4)
            assert own.score == theirs[BENCHMARKS[name].metric]
        mean = sum(sample.score for sample in samples) / 4
        assert mean == expected[name]["results"][f"{BENCHMARKS[name].metric},none"]


def test_mmlu_has_all_subjects_with_the_first_five_examples(model, data, subjects):
    tasks = short.build(BENCHMARKS["mmlu"], preparation(model, data))
    assert len(tasks) == 57
    assert {task.task.config.dataset_name for task in tasks} == set(subjects)
    for task in tasks:
        harness = task.task
        subject = harness.config.dataset_name
        assert [row["subject"] for row in harness.test_docs()] == [subject] * 4
        context = harness.fewshot_context(harness.test_docs()[0], num_fewshot=5)
        positions = [context.find(f"lamp {100 + n} of {subject}?") for n in range(5)]
        assert min(positions) > 0
        assert positions == sorted(positions)


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_never_tested_rows(model, data, name):
    """The tested rows count from 0, the others from 100."""
    (task, *_) = short.build(BENCHMARKS[name], preparation(model, data))
    harness = task.task
    harness.set_fewshot_seed(SEED)
    assert len(harness.sampler.df) in (5, 9, 14, 30)
    tested = list(harness.eval_docs)
    assert not [row for row in harness.sampler.df if row in tested]
    drawn = harness.sampler.sample(BENCHMARKS[name].num_fewshot, eval_doc=tested[0])
    assert len(drawn) == BENCHMARKS[name].num_fewshot
    assert not [row for row in drawn if row in tested]


@pytest.mark.parametrize("name", NAMES)
def test_parquet_is_read_as_json_lines_are(model, data, subjects, tmp_path, name):
    other = benchmark_data.write_short(tmp_path, subjects, suffix=".parquet")
    made = [short.build(BENCHMARKS[name], preparation(model, directory))[-1].task for directory in (data, other)]
    for task in made:
        task.set_fewshot_seed(SEED)
    contexts = [
        [task.fewshot_context(row, num_fewshot=task.config.num_fewshot) for row in task.eval_docs] for task in made
    ]
    assert contexts[0] == contexts[1]


@pytest.mark.parametrize(
    ("name", "file", "change", "words"),
    [
        ("mmlu", "test", lambda row: row | {"answer": 4}, "row 3: field 'answer' should be 0, 1, 2 or 3, not 4"),
        ("mmlu", "dev", lambda row: row | {"subject": "alchemy"}, "has 4 rows of the subject abstract_algebra"),
        ("arc_challenge", "test", lambda row: row | {"answerKey": "E"}, "row 3: field 'answerKey' should be a label"),
        ("arc_challenge", "train", lambda row: {"question": row["question"]}, "row 3: field 'choices' is missing"),
        ("hellaswag", "validation", lambda row: row | {"label": ""}, "row 3: field 'label' should be 0, 1, 2 or 3"),
        ("winogrande", "train", lambda row: row | {"sentence": "No place."}, "row 3: field 'sentence' should be a"),
    ],
)
def test_rows_that_are_not_as_published_are_named(model, data, tmp_path, name, file, change, words):
    shutil.copytree(data / name, tmp_path / name)
    path = tmp_path / name / f"{file}.jsonl"
    rows = path.read_text().splitlines()
    rows[2] = json.dumps(change(json.loads(rows[2])))
    path.write_text("\n".join(rows))
    with pytest.raises(InputError, match=words):
        short.build(BENCHMARKS[name], preparation(model, tmp_path))


def test_too_few_examples_and_missing_files_are_refused(model, data, tmp_path):
    with pytest.raises(InputError, match=r"arc_challenge, which does not exist"):
        short.build(BENCHMARKS["arc_challenge"], preparation(model, tmp_path))
    shutil.copytree(data / "arc_challenge", tmp_path / "arc_challenge")
    path = tmp_path / "arc_challenge" / "train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:25]))
    with pytest.raises(InputError, match="has 25 rows, and arc_challenge needs 26 at least"):
        short.build(BENCHMARKS["arc_challenge"], preparation(model, tmp_path))
    path.unlink()
    with pytest.raises(InputError, match=r"has no train\.parquet and no train\.jsonl"):
        short.build(BENCHMARKS["arc_challenge"], preparation(model, tmp_path))


def test_default_seed_draws_the_examples_that_the_harness_draws():
    from lm_eval import defaults

    from nemo_longpo.evaluation import cli

    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    arguments = parser.parse_args(["eval", "MODEL", "--suite", "short"])
    assert arguments.seed == plan.Evaluation.seed == defaults.DEFAULT_OTHER_SEED


def test_a_seed_draws_the_same_examples_again(model, data):
    task = short.build(BENCHMARKS["hellaswag"], preparation(model, data))[0].task
    drawn = []
    for seed in (1, 1, 2):
        task.set_fewshot_seed(seed)
        random.random()
        drawn.append([task.fewshot_context(row, num_fewshot=10) for row in task.eval_docs])
    assert drawn[0] == drawn[1] != drawn[2]
