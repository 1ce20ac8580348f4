"""What a run leaves in its directory: the same bytes for the same scores, the last run's alone, nobody else's files."""

import json

import pytest
from support.eval_scores import SETTINGS, model_scores

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.results import report

BEFORE = model_scores("before", {("facts", 64): [1.0, 0.0], ("facts", 128): [0.0, 0.5], ("mmlu", None): [1.0]})
AFTER = model_scores("after", {("facts", 64): [1.0, 1.0], ("facts", 128): [0.0, 1.0], ("mmlu", None): [1.0]})


def files(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_two_runs_write_the_same_bytes(tmp_path):
    report.write(tmp_path / "one", [BEFORE, AFTER], SETTINGS)
    once = files(tmp_path / "one")
    pages = {"results.json", "results.md", "results.html", "accuracy.svg"}
    tasks = ("facts-64", "facts-128", "mmlu")
    assert set(once) == pages | {f"samples/{label}/{task}.jsonl" for label in ("before", "after") for task in tasks}
    report.write(tmp_path / "one", [BEFORE, AFTER], SETTINGS)
    report.write(tmp_path / "two", [BEFORE, AFTER], SETTINGS)
    assert files(tmp_path / "one") == files(tmp_path / "two") == once


def test_results_are_those_of_the_last_run(tmp_path):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers/kept.jsonl").write_text("kept")
    report.write(tmp_path, [BEFORE, AFTER], SETTINGS)
    report.check_output(tmp_path)
    report.write(tmp_path, [model_scores("third", {("mmlu", None): [0.0, 1.0]})], SETTINGS)
    left = files(tmp_path)
    assert set(left) == {"answers/kept.jsonl", "results.json", "results.md", "results.html", "samples/third/mmlu.jsonl"}
    assert all(b"after" not in content for name, content in left.items() if name != "results.html")


def test_samples_are_rows_of_json(tmp_path):
    report.write(tmp_path, [BEFORE], SETTINGS)
    rows = [json.loads(line) for line in (tmp_path / "samples/before/facts-128.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": "q0", "prompt_sha256": "hash of q0", "answer": "answer 0", "expected": ["right"], "score": 0.0},
        {"id": "q1", "prompt_sha256": "hash of q1", "answer": "answer 0.5", "expected": ["right"], "score": 0.5},
    ]


def test_labels_cannot_leave_the_directory(tmp_path):
    labels = ["..", "a b", "A_b", "a_b", "a_b-4", "é", "\udcff", "", "x" * 300]
    models = [model_scores(label, {("facts", 64): [1.0]}) for label in labels]
    report.write(tmp_path / "out", models, SETTINGS)
    folders = sorted(path.name for path in (tmp_path / "out/samples").iterdir())
    assert len(folders) == len(labels) == len({folder.lower() for folder in folders})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out/results.json").read_text())["models"][6]["label"] == "\udcff"


@pytest.mark.parametrize("name", ["results.json", "results.md", "results.html", "accuracy.svg", "samples"])
def test_files_of_others_are_refused(tmp_path, name):
    report.check_output(tmp_path)
    report.check_output(tmp_path / "new/deep")
    if name == "samples":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text('{"format": "another"}')
    with pytest.raises(InputError, match=f"{name} is not of this version of longpo eval; give --output another"):
        report.check_output(tmp_path)


def test_a_killed_first_run_is_no_obstacle(tmp_path):
    """Between its first file and results.json, which comes last, the directory has answers."""
    report.write(tmp_path, [BEFORE], SETTINGS)
    (tmp_path / "answers").mkdir()
    (tmp_path / "results.json").unlink()
    report.check_output(tmp_path)


def test_an_output_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no directory"):
        report.check_output(tmp_path / "file")
    with pytest.raises(InputError, match="is no directory"):
        report.check_output(tmp_path / "file/below")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="is not readable JSON"):
        report.check_output(tmp_path)
