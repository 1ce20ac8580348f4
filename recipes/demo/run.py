"""The whole main job on one CPU machine: `longpo demo --output DIR`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_longpo.checkpoints.metrics_log import read_metrics
from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

from .plots import plot_accuracy, plot_rewards
from .runner import run_stages, write_json
from .stages import BASE_LENGTH, DemoSettings, demo_stages, metrics_file, training_directory


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Run what is missing in `settings.output`, draw the plots, and return (and write) the summary.

    Keys of the summary: `settings`, `accuracy_before` and `accuracy_after` (tokens -> share), `seconds` (stage ->
    seconds), `files` (name -> path).
    """
    output = settings.output
    output.mkdir(parents=True, exist_ok=True)
    described = {name: value for name, value in asdict(settings).items() if name != "output"}
    refuse_other_settings(output / "settings.json", described)
    seconds = run_stages(demo_stages(settings), output)
    before, after = (_read_accuracy(output / name) for name in ("before.json", "after.json"))
    steps = read_metrics(training_directory(output))
    plot_accuracy(output / "accuracy.png", before, after, BASE_LENGTH)
    plot_rewards(output / "rewards.png", steps)
    summary = {
        "settings": described,
        "accuracy_before": before,
        "accuracy_after": after,
        "seconds": seconds,
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
    write_json(output / "summary.json", summary)
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


def refuse_other_settings(path: Path, settings: dict[str, Any]) -> None:
    """Finished stages are only reused for the settings that they were run with."""
    if not path.exists():
        write_json(path, settings)
        return
    stored = read_json_object(path, "remove it with all that lies beside it, or give another --output")
    changed = [
        f"{name} {stored.get(name)} (now {value})" for name, value in settings.items() if stored.get(name) != value
    ]
    if changed:
        raise InputError(
            f"{path.parent} holds a demo with other settings: {', '.join(changed)}; continue it with the same ones, or "
            "give another --output."
        )
