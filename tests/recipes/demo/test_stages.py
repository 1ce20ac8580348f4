"""The demo's steps, its settings and its summary."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_longpo.errors import InputError
from nemo_longpo.recipes.demo import cli, stages
from nemo_longpo.recipes.demo.run import format_summary, plot_accuracy, plot_rewards, records_of_before
from nemo_longpo.recipes.demo.stages import DemoSettings, demo_steps, training_progress
from nemo_longpo.steps import run_steps, show_plan


@pytest.fixture(autouse=True)
def commands_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "public_command", lambda name: name)


def test_commands_use_the_cpu_and_thread_limit(tmp_path: Path) -> None:
    for step in demo_steps(DemoSettings(output=tmp_path))[1:]:
        assert step.env["CUDA_VISIBLE_DEVICES"] == ""
        assert step.env.get("OMP_NUM_THREADS") == ("1" if step.name == "train" else None)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """Each is refused by the step that it affects, once that step has started."""
    (tmp_path / "documents.jsonl").touch()
    documents = demo_steps(DemoSettings(output=tmp_path, documents=3, tokens=64))[:1]
    run_steps(documents, tmp_path)
    with pytest.raises(InputError, match=r"'documents' was run with documents=3 \(now 4\)"):
        run_steps(demo_steps(DemoSettings(output=tmp_path, documents=4, tokens=64)), tmp_path)
    run_steps(demo_steps(DemoSettings(output=tmp_path, documents=3, tokens=64, steps=7))[:1], tmp_path)


def test_demo_of_before_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has two files instead of `steps.json`; its settings also apply to unfinished steps."""
    assert records_of_before(tmp_path) is None
    stored = {"documents": 3, "tokens": 64, "steps": 7, "samples": 5, "gone": 1}
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    (tmp_path / "stages.json").write_text(json.dumps({"documents": 1.5}))
    (tmp_path / "documents.jsonl").touch()
    known = records_of_before(tmp_path)
    settings = DemoSettings(output=tmp_path, documents=3, tokens=64, steps=7, samples=5)
    show_plan(demo_steps(settings), tmp_path, known=known)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["documents: done", "chunk: to run"]
    assert run_steps(demo_steps(settings)[:1], tmp_path, known=known)["documents"].seconds == 1.5
    for changes, message in (({"steps": 8}, r"'train' was run with steps=7 \(now 8\)"), ({"samples": 6}, "'evaluate'")):
        with pytest.raises(InputError, match=message):
            run_steps(demo_steps(replace(settings, **changes)), tmp_path, known=known)
    (tmp_path / "stages.json").write_text('{"documents": "x"}')
    with pytest.raises(InputError, match=r"stages.json: field 'seconds' should be a number"):
        records_of_before(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings.json is not readable JSON: .*give another --output"):
        records_of_before(tmp_path)


def test_steps_read_earlier_output(tmp_path: Path) -> None:
    """The declared inputs and outputs of a step are the paths in its command."""
    written = {tmp_path / "documents.jsonl"}
    for step in demo_steps(DemoSettings(output=tmp_path))[1:]:
        values = [re.sub(r"^((data|resume|log)[a-z._]*|before|after)=", "", argument) for argument in step.command]
        named = {Path(value) for value in values if value.startswith(str(tmp_path))}
        assert named - set(step.inputs) == set(step.outputs)
        inputs = {path for path in step.inputs if path.is_relative_to(tmp_path)}
        assert inputs <= written & named, f"{step.name} reads {inputs - written}"
        written |= set(step.outputs)
    assert tmp_path / "model" in written


def test_training_progress_reads_the_newest_metrics(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert training_progress(metrics, 5) == "starting"
    metrics.write_text("".join(json.dumps({"step": i, "loss": 2.0, "rewards/margins": 0.5}) + "\n" for i in (1, 2)))
    assert training_progress(metrics, 5) == "step 2/5, loss 2.000, margin 0.500"


def test_lengths_to_measure() -> None:
    assert DemoSettings(output=Path(), tokens=1024).lengths == (64, 96, 128, 256, 512, 1024)
    assert DemoSettings(output=Path(), tokens=256).lengths == (64, 96, 128, 256)


@pytest.mark.slow
def test_plots_and_summary(tmp_path: Path) -> None:
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "loss/nll", "loss/longpo")
    plot_accuracy(tmp_path / "a.png", {64: 1.0, 1024: 0.0}, {64: 0.98, 1024: 0.95}, 128)
    plot_rewards(tmp_path / "r.png", [{"step": i, **dict.fromkeys(names, 0.1 * i)} for i in (1, 2)])
    for name in ("a.png", "r.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    summary = {
        "accuracy_before": {64: 1.0, 1024: 0.0},
        "accuracy_after": {64: 0.98, 1024: 0.95},
        "seconds": {"train": 100.4, "export": 5.0},
        "files": {"model": "out/model", "plots": ["a.png", "r.png"]},
    }
    text = format_summary(summary)
    assert "    1024       0%      95%" in text
    assert "total           105" in text
    assert "out/model" in text
    assert "r.png" in text


def test_command_line_has_settings_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    seen: list[DemoSettings] = []
    monkeypatch.setattr("nemo_longpo.recipes.demo.run.run_demo", lambda settings, redo: seen.append(settings) or {})
    arguments = parser.parse_args(["demo", "--output", str(tmp_path), "--steps", "7", "--json"])
    assert arguments.run(arguments) == 0
    assert seen == [DemoSettings(output=tmp_path, steps=7)]
