"""The demo's round, its settings, its summary and its plots."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import small_evolution

from nemo_longpo.cli import main
from nemo_longpo.errors import InputError
from nemo_longpo.recipes.demo import cli, one_round
from nemo_longpo.recipes.demo.one_round import DemoSettings, demo_round, format_summary
from nemo_longpo.steps import Step, plan, run_steps

SMALL = ("--documents", "3", "--tokens", "256", "--steps", "4", "--samples", "8")
METRICS = ("loss", "loss/nll", "loss/longpo", "rewards/chosen", "rewards/rejected", "rewards/margins")


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stand-ins for the public commands, in `bin` beside what they read and note. Returns the demo's output."""
    bin_directory = small_evolution.programs(tmp_path)
    monkeypatch.setattr("sys.executable", str(bin_directory / "python"))
    return tmp_path / "out"


def steps_of(output: Path, **settings: Any) -> dict[str, Step]:
    return {step.name: step for step in demo_round(DemoSettings(output=output, **settings))[0]}


def test_steps_are_those_of_a_round_behind_the_documents(programs: Path) -> None:
    names = ["data-1", "pairs-1", "import-1", "train-1", "export-1", "evaluate-1", "gate-1"]
    steps = steps_of(programs)
    assert list(steps) == ["documents", *names]
    for step in steps.values():
        if step.command:
            assert step.env["CUDA_VISIBLE_DEVICES"] == ""
            assert step.env.get("OMP_NUM_THREADS") == ("1" if step.name == "train-1" else None)


def test_settings_of_the_command_line_reach_their_commands(programs: Path) -> None:
    settings = DemoSettings(output=programs, tokens=300, steps=7, learning_rate=1e-3, samples=5, seed=3)
    steps, own = demo_round(settings)
    by_name = {step.name: step for step in steps}
    assert {"trainer.max_steps=7", "optim.config.lr=0.001", "data.seed=3", "trainer.devices=2"} <= {
        *by_name["train-1"].command
    }
    assert own.data["input"] == [str(programs / "documents.jsonl")]
    chunks = {"chunk_tokens": 96, "chunks_per_document": 4, "min_document_tokens": 150, "max_document_tokens": 300}
    assert own.data["stages"]["chunk"] == chunks | {"seed": 3}
    assert own.data["stages"]["instruct"]["seed"] == 3
    words = " ".join(by_name["evaluate-1"].command)
    assert "--lengths 64 96 128 256 300 --samples 5 " in words


def test_megatron_bridge_trains_with_the_same_settings(programs: Path, tmp_path: Path) -> None:
    there = tmp_path / "bridge"
    there.mkdir()
    steps = steps_of(programs, bridge=small_evolution.programs(there), steps=7, learning_rate=1e-3, seed=3)
    started, training = (" ".join(steps[name].command) for name in ("import-1", "train-1"))
    assert started.startswith(f"{there}/bin/longpo convert import ")
    assert " --format bridge " in started
    assert training.startswith(
        f"{there}/bin/torchrun --nproc-per-node 2 -m nemo_longpo.bridge.train --recipe tiny_longpo "
    )
    assert {
        *("model.context_parallel_size=2", "model.objective.preference_weight=0.1", "model.objective.beta=0.1"),
        *("scheduler.lr_warmup_fraction=0.1", "train.train_iters=7", "optimizer.lr=0.001", "dataset.seed=3"),
    } <= {*steps["train-1"].command}
    assert "trainer." not in training
    assert steps["data-1"].command[0] == steps_of(programs)["data-1"].command[0]


def test_documents_are_written_before_they_are_read(programs: Path) -> None:
    steps = steps_of(programs, documents=3, tokens=64)
    run_steps([steps["documents"]], programs)
    (source,) = demo_round(DemoSettings(output=programs, tokens=64))[1].data["input"]
    lines = [json.loads(line) for line in Path(source).read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == ["demo-0000", "demo-0001", "demo-0002"]


def test_other_settings_are_refused(programs: Path) -> None:
    """Each is refused by the step that it affects, once that step has started."""
    settings = DemoSettings(output=programs, documents=3, tokens=64)
    run_steps(demo_round(settings)[0][:1], programs)
    with pytest.raises(InputError, match=r"'documents' was run with documents=3 \(now 4\)"):
        run_steps(demo_round(replace(settings, documents=4))[0], programs)
    run_steps(demo_round(replace(settings, steps=7))[0][:1], programs)


@pytest.mark.parametrize("name", ["settings.json", "data/chunk/part-00000.jsonl"])
def test_demo_of_an_earlier_version_is_refused(programs: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (programs / name).parent.mkdir(parents=True)
    (programs / name).touch()
    for flags in ([], ["--dry-run"]):
        assert main(["demo", "--output", str(programs), *flags]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert re.search(r"is of a demo by an earlier version, .*; give another --output", sentence)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "1"], "min_document_tokens"),
        (
            ["--tokens", "9000000", "--dry-run"],
            "--tokens 9,000,000 is more than the demo's model reaches: it is measured before training too, and has "
            "4,096 positions; give at most so many",
        ),
        (["--samples", "0"], "field 'samples' should be a"),
        (["--redo", "train"], "--redo train: there is no such step; the steps are documents, data-1, pairs-1,"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    programs: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["demo", "--output", str(programs), *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (programs / "documents.jsonl").exists()


@pytest.mark.slow
def test_demo_ends_with_summary_and_plots(
    programs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the commands' stand-ins, which write no page, in an output that two steps have begun."""
    monkeypatch.setattr(one_round, "BASE_MODEL", Path(small_evolution.content(programs.parent)["base"]))
    training = programs / "round-1/training"
    metrics = training / "tb_logs/longpo/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("".join(json.dumps({"step": i, **dict.fromkeys(METRICS, 0.1 * i)}) + "\n" for i in (1, 2)))
    checkpoint = training / "longpo/checkpoints/global_step=4"
    weights = [f"weights/{name}" for name in (".metadata", "metadata.json", "common.pt", "__0_0.distcp")]
    for name in (*weights, "context/io.json", "context/model.yaml"):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text("whole")
    (programs / "round-1/data/shards").mkdir(parents=True)
    steps = steps_of(programs, documents=3, tokens=256, steps=4, samples=8)
    begun = {name: plan.Record(settings=steps[name].recorded_settings()) for name in ("data-1", "train-1")}
    plan.write_records(programs, begun)
    tasks = [
        {"length": length, "models": {"before": {"mean": before}, "after": {"mean": 95.0}}}
        for length, before in ((64, 98.0), (256, 70.0))
    ]
    results = programs.parent / "results.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {"tasks": tasks}))
    assert main(["demo", "--output", str(programs), *SMALL, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["accuracy_before"] == {"64": 0.98, "256": 0.7}
    assert summary["accuracy_after"] == {"64": 0.95, "256": 0.95}
    assert list(summary["seconds"]) == list(steps_of(programs, tokens=256))
    written = [Path(path) for value in summary["files"].values() for path in ([value] if type(value) is str else value)]
    assert [path for path in written if not path.exists()] == [programs / "round-1/evaluation/results.html"]
    for name in ("accuracy.png", "rewards.png"):
        assert (programs / name).read_bytes().startswith(b"\x89PNG")
    asked = small_evolution.calls(programs.parent)
    assert main(["demo", "--output", str(programs), *SMALL]) == 0
    assert "     256      70%      95%" in capsys.readouterr().out
    assert small_evolution.calls(programs.parent) == asked


def test_summary_as_tables() -> None:
    summary = {
        "accuracy_before": {64: 1.0, 1024: 0.0},
        "accuracy_after": {64: 0.98, 1024: 0.95},
        "seconds": {"train-1": 100.4, "export-1": 5.0},
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
    monkeypatch.setattr(one_round, "run_demo", lambda settings, redo: seen.append(settings) or {})
    arguments = parser.parse_args(["demo", "--output", str(tmp_path), "--steps", "7", "--json"])
    assert arguments.run(arguments) == 0
    assert seen == [DemoSettings(output=tmp_path, steps=7)]
