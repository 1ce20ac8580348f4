"""The demo's bookkeeping, with stand-ins for the commands."""

import argparse
import json
import re
import sys
from pathlib import Path

import pytest

from nemo_longpo.errors import InputError
from nemo_longpo.recipes.demo import cli, stages
from nemo_longpo.recipes.demo.plots import plot_accuracy, plot_rewards
from nemo_longpo.recipes.demo.run import format_summary, refuse_other_settings
from nemo_longpo.recipes.demo.runner import run_stages
from nemo_longpo.recipes.demo.stages import DemoSettings, Stage, demo_stages, training_progress


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


def test_finished_stages_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = tmp_path / "calls"
    append = f"open({str(calls)!r}, 'a').write('x')"
    seconds = run_stages([Stage("one", "first", python(append))], tmp_path)
    both = [Stage("one", "first", python(append)), Stage("two", "second", function=lambda: calls.open("a").write("y"))]
    assert run_stages(both, tmp_path)["one"] == seconds["one"]
    assert calls.read_text() == "xy"
    assert "[ 1/2] one       first: already done" in capsys.readouterr().out


def test_a_failing_command_stops_the_demo_with_its_own_words(tmp_path: Path) -> None:
    failing = Stage("bad", "fail", python("import sys; print('no such thing'); sys.exit(3)"))
    never = Stage("after", "never", function=lambda: pytest.fail("a stage ran after a failed one"))
    with pytest.raises(InputError, match=r"'bad' failed with exit status 3(.|\n)*no such thing"):
        run_stages([failing, never], tmp_path)
    assert not (tmp_path / "stages.json").exists()


def test_the_environment_keeps_to_the_cpu_and_the_thread_limit(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    values = "os.environ['OMP_NUM_THREADS'] + repr(os.environ['CUDA_VISIBLE_DEVICES'])"
    code = f"import os; open({str(seen)!r}, 'w').write({values})"
    run_stages([Stage("env", "look", python(code), threads=1)], tmp_path)
    assert seen.read_text() == "1''"


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    refuse_other_settings(path, {"steps": 40, "seed": 0})
    refuse_other_settings(path, {"steps": 40, "seed": 0})
    with pytest.raises(InputError, match=r"steps 40 \(now 20\)"):
        refuse_other_settings(path, {"steps": 20, "seed": 0})
    assert json.loads(path.read_text())["steps"] == 40
    path.write_text("{")
    with pytest.raises(InputError, match=r"settings.json is not readable JSON: .*give another --output"):
        refuse_other_settings(path, {"steps": 40, "seed": 0})


def test_every_stage_reads_what_an_earlier_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "public_command", lambda name: name)
    written = {str(tmp_path / "documents.jsonl"), str(tmp_path / "training")}
    for stage in demo_stages(DemoSettings(output=tmp_path))[1:]:
        command = stage.command
        assert command is not None
        values = [re.sub(r"^(data|resume|log)[a-z._]*=", "", argument) for argument in command]
        target = {values[values.index("--output") + 1]} if "--output" in values else set()
        inputs = {value for value in values if value.startswith(str(tmp_path))} - target
        assert inputs <= written, f"{stage.name} reads {inputs - written}"
        written |= target
    assert str(tmp_path / "model") in written


def test_training_progress_reads_the_newest_metrics(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert training_progress(metrics, 5) == "starting"
    metrics.write_text("".join(json.dumps({"step": i, "loss": 2.0, "rewards/margins": 0.5}) + "\n" for i in (1, 2)))
    assert training_progress(metrics, 5) == "step 2/5, loss 2.000, margin 0.500"


def test_lengths_to_measure() -> None:
    assert DemoSettings(Path(), tokens=1024).lengths == (64, 96, 128, 256, 512, 1024)
    assert DemoSettings(Path(), tokens=256).lengths == (64, 96, 128, 256)


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


def test_command_line_defaults_are_the_settings_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    seen: list[DemoSettings] = []
    monkeypatch.setattr("nemo_longpo.recipes.demo.run.run_demo", lambda settings: seen.append(settings) or {})
    arguments = parser.parse_args(["demo", "--output", str(tmp_path), "--steps", "7", "--json"])
    assert arguments.run(arguments) == 0
    assert seen == [DemoSettings(output=tmp_path, steps=7)]
