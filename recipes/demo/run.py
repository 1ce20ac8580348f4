"""Run the demo on one CPU machine, `longpo demo --output DIR`, with its summary and its two plots."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_longpo import atomic, json_input, typed_fields
from nemo_longpo.checkpoints.run_directory import find_checkpoint, read_metrics
from nemo_longpo.line_plot import curves
from nemo_longpo.steps import Record, Records, run_steps

from .stages import BASE_LENGTH, DemoSettings, demo_steps, evaluation_directory, metrics_file, training_directory

if TYPE_CHECKING:
    from matplotlib import axes as of_axes

_ADVICE = "remove it with everything beside it, or give another --output"
_BEFORE, _AFTER, _CHOSEN, _REJECTED, _MARGIN = "#9a9a9a", "#1f6feb", "#1a7f37", "#cf222e", "#1f6feb"


def run_demo(settings: DemoSettings, redo: str | None = None) -> dict[str, Any]:
    """Run what is missing in `settings.output`, draw the plots, and return (and write) the summary.

    Keys of the summary: `settings`, `accuracy_before` and `accuracy_after` (tokens -> share), `seconds` (stage ->
    seconds), `files` (name -> path).
    """
    output = settings.output
    records = run_steps(demo_steps(settings), output, redo=redo, known=records_of_before(output))
    results = evaluation_directory(output) / "results.json"
    before, after = (_accuracy(results, label) for label in ("before", "after"))
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
            "evaluation": str(results.with_suffix(".html")),
            "plots": [str(output / "accuracy.png"), str(output / "rewards.png")],
        },
    }
    atomic.write_file(output / "summary.json", json.dumps(summary, indent=1))
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """Return the summary as short tables for a terminal."""
    lines = ["", "share of questions answered right, by document length", f"{'tokens':>8} {'before':>8} {'after':>8}"]
    for tokens, before in summary["accuracy_before"].items():
        lines.append(f"{tokens:>8} {before:>8.0%} {summary['accuracy_after'][tokens]:>8.0%}")
    lines += ["", f"{'stage':<10} {'seconds':>8}"]
    lines += [f"{stage:<10} {seconds:>8.0f}" for stage, seconds in summary["seconds"].items()]
    lines += [f"{'total':<10} {sum(summary['seconds'].values()):>8.0f}", "", "written"]
    for name, paths in summary["files"].items():
        lines += [f"  {name:<11} {path}" for path in ([paths] if isinstance(paths, str) else paths)]
    return "\n".join(lines)


def _accuracy(results: Path, label: str) -> dict[int, float]:
    """The share of right answers by length, from a `results.json` of `longpo eval`."""
    tasks = json_input.read_json_object(results, _ADVICE)["tasks"]
    return {task["length"]: task["models"][label]["mean"] / 100 for task in tasks}


def records_of_before(output: Path) -> Records | None:
    """Return the records of a demo from before `steps.json`, read from `settings.json` and `stages.json`, or None.

    These settings applied to all steps, including those not started. Raises InputError if one of the files is damaged.
    """
    if not (output / "settings.json").exists():
        return None
    stored = json_input.read_json_object(output / "settings.json", _ADVICE)
    stages = output / "stages.json"
    seconds = json_input.read_json_object(stages, _ADVICE) if stages.exists() else {}
    content = {item.name: stored[item.name] for item in fields(DemoSettings) if item.name in stored}
    return {
        step.name: typed_fields.build(
            Record,
            {"settings": dict(step.settings), "seconds": seconds.get(step.name)},
            str(stages),
            _ADVICE,
            exact=False,
        )
        for step in demo_steps(DemoSettings(output=output, **content))
    }


def plot_accuracy(path: Path, before: dict[int, float], after: dict[int, float], base_length: int) -> None:
    """Plot the share of right answers over document length (tokens), before and after training, as a PNG."""
    figure, (axes,) = curves.figure(1, (7.0, 4.2))
    lengths = sorted(before)
    axes.axvspan(lengths[0] / 1.15, base_length, color="#f0f0f0", zorder=0)
    axes.text(lengths[0] / 1.1, 12, "lengths of the\nbase model", color="#666666", va="center", fontsize=9)
    for accuracy, color, label in ((before, _BEFORE, "before"), (after, _AFTER, "after LongPO")):
        values = [100 * accuracy[n] for n in lengths]
        axes.plot(lengths, values, marker="o", color=color, label=label, linewidth=2, clip_on=False, zorder=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.set_xlim(lengths[0] / 1.15, lengths[-1] * 1.15)
    axes.set_ylim(0, 103)
    axes.minorticks_off()
    axes.set_xlabel("document length (tokens)")
    axes.set_ylabel("questions answered right (%)")
    axes.set_title("A short-context model learns long documents from its own answers", loc="left")
    axes.legend(frameon=False, loc="center right")
    figure.savefig(path)


def plot_rewards(path: Path, steps: list[dict[str, Any]]) -> None:
    """Plot rewards and loss over optimizer steps, from the objects of `metrics.jsonl`, as a PNG."""
    figure, (rewards, losses) = curves.figure(2, (10.0, 4.2))
    x = [entry["step"] for entry in steps]
    for name, color in (("chosen", _CHOSEN), ("rejected", _REJECTED), ("margins", _MARGIN)):
        _labelled_line(rewards, x, [entry[f"rewards/{name}"] for entry in steps], color, name.removesuffix("s"))
    rewards.axhline(0, color="#bbbbbb", linewidth=1, zorder=0)
    rewards.set_title("rewards: policy against reference", loc="left")
    rewards.set_ylabel("β · (log-prob − reference log-prob)")
    for name, color, label in (("loss/nll", _BEFORE, "NLL"), ("loss/longpo", _AFTER, "preference")):
        _labelled_line(losses, x, [entry[name] for entry in steps], color, label)
    losses.set_title("loss terms", loc="left")
    losses.set_ylabel("loss (nats)")
    losses.set_ylim(bottom=0)
    for axes in (rewards, losses):
        axes.set_xlabel("training step")
        axes.set_xlim(x[0], x[-1])
    figure.savefig(path)


def _labelled_line(axes: "of_axes.Axes", x: list[int], y: list[float], color: str, label: str) -> None:
    """Draw a line with its label at the right end, so that no curve crosses a legend."""
    axes.plot(x, y, color=color, linewidth=2)
    axes.annotate(
        label,
        (x[-1], y[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=color,
        annotation_clip=False,
    )
