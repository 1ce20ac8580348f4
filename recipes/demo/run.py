"""The whole main job on one CPU machine: `longpo demo --output DIR`."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nemo_longpo.atomic import write_file
from nemo_longpo.checkpoints.metrics_log import read_metrics
from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.json_input import read_json_object
from nemo_longpo.steps import Record, Records, run_steps
from nemo_longpo.typed_fields import build

from .plots import plot_accuracy, plot_rewards
from .stages import BASE_LENGTH, DemoSettings, demo_steps, metrics_file, training_directory

_ADVICE = "remove it with all that lies beside it, or give another --output"


def run_demo(settings: DemoSettings, redo: str | None = None) -> dict[str, Any]:
    """Run what is missing in `settings.output`, draw the plots, and return (and write) the summary.

    Keys of the summary: `settings`, `accuracy_before` and `accuracy_after` (tokens -> share), `seconds` (stage ->
    seconds), `files` (name -> path).
    """
    output = settings.output
    records = run_steps(demo_steps(settings), output, redo=redo, known=records_of_before(output))
    before, after = (_read_accuracy(output / name) for name in ("before.json", "after.json"))
    steps = read_metrics(training_directory(output))
    plot_accuracy(output / "accuracy.png", before, after, BASE_LENGTH)
    plot_rewards(output / "rewards.png", steps)
    summary = {
        "settings": {name: value for name, value in asdict(settings).items() if name != "output"},
        "accuracy_before": before,
        "accuracy_after": after,
        "seconds": {name: record.seconds for name, record in records.items()},
        "files": {
            "documents": str(output / "documents.jsonl"),
            "pairs": str(output / "data" / "filter"),
            "shards": str(output / "data" / "shards"),
            "metrics": str(metrics_file(output)),
            "checkpoint": str(find_checkpoint(training_directory(output))),
            "model": str(output / "model"),
            "plots": [str(output / "accuracy.png"), str(output / "rewards.png")],
        },
    }
    write_file(output / "summary.json", json.dumps(summary, indent=1))
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """The summary as short tables for a terminal."""
    lines = ["", "share of questions answered right, by document length", f"{'tokens':>8} {'before':>8} {'after':>8}"]
    for tokens, before in summary["accuracy_before"].items():
        lines.append(f"{tokens:>8} {before:>8.0%} {summary['accuracy_after'][tokens]:>8.0%}")
    lines += ["", f"{'stage':<10} {'seconds':>8}"]
    lines += [f"{stage:<10} {seconds:>8.0f}" for stage, seconds in summary["seconds"].items()]
    lines += [f"{'total':<10} {sum(summary['seconds'].values()):>8.0f}", "", "written"]
    for name, paths in summary["files"].items():
        lines += [f"  {name:<11} {path}" for path in ([paths] if isinstance(paths, str) else paths)]
    return "\n".join(lines)


def _read_accuracy(path: Path) -> dict[int, float]:
    return {int(tokens): share for tokens, share in json.loads(path.read_text())["accuracy"].items()}


def records_of_before(output: Path) -> Records | None:
    """What `settings.json` and `stages.json` say of a demo that was begun before there was `steps.json`, or None.

    All steps have been held to these settings, also those that had not been started. Raises InputError if one of the
    files is damaged.
    """
    if not (output / "settings.json").exists():
        return None
    stored = read_json_object(output / "settings.json", _ADVICE)
    stages = output / "stages.json"
    seconds = read_json_object(stages, _ADVICE) if stages.exists() else {}
    content = {item.name: stored[item.name] for item in fields(DemoSettings) if item.name in stored}
    return {
        step.name: build(
            Record,
            {"settings": dict(step.settings), "seconds": seconds.get(step.name)},
            str(stages),
            _ADVICE,
            exact=False,
        )
        for step in demo_steps(DemoSettings(output=output, **content))
    }
