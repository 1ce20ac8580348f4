"""The demo's two plots: accuracy over document length, and rewards and loss over training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_longpo.line_plot import curves

if TYPE_CHECKING:
    from matplotlib import axes as of_axes

_BEFORE, _AFTER, _CHOSEN, _REJECTED, _MARGIN = "#9a9a9a", "#1f6feb", "#1a7f37", "#cf222e", "#1f6feb"


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
