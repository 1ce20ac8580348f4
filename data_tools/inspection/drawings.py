"""Format the summary as aligned lines for the terminal and as plots for the page, with names and numbers.

Plots are in the units of their data; page.html draws them as SVG, page.css sets the colours. No plotting library is
used: each bar and point shows its values on hover, and colours follow the light or dark page.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nemo_longpo.terminal import number, printable, share, size

from .shard_summary import SPREAD, Values, even_edges

_LABEL = 27
_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LONGEST_SETTING = 40
_MOST_POINTS = 2000
_SIDES = ("chosen", "rejected")


def format_summary(summary: dict[str, Any]) -> str:
    """Return counts, a table of spreads, two histograms, provenance. Values too long for a line are in `--json`."""
    margins = summary["histograms"]["margin_per_document"]
    edges = zip(margins["edges"][:-1], margins["edges"][1:], strict=True)
    preferred = [f"{share(value)} of {words(name)}" for name, value in summary["reference_prefers_chosen"].items()]
    return "\n".join(
        [
            *_lines(
                directory=summary["directory"],
                verified="yes: every hash, span and sum" if summary["verified"] else "no (--verify recomputes)",
                files=f"{number(summary['files'])} ({size(summary['bytes'])})",
                **{name: number(value) for name, value in summary["counts"].items()},
            ),
            "",
            " " * _LABEL + "".join(f"{name:>9}" for name in SPREAD),
            *_lines(
                **{
                    name: "".join(f"{number(spread[column]):>9}" for column in SPREAD)
                    for name, spread in summary["distributions"].items()
                }
            ),
            "",
            *_lines(reference_prefers_chosen=", ".join(preferred)),
            "",
            "tokens per sequence, documents",
            *_bars({f"≤ {int(bucket):,}": count for bucket, count in summary["length_histogram"].items()}),
            "",
            "margin per document, documents",
            *_bars({f"{low:,g} … {high:,g}": n for (low, high), n in zip(edges, margins["counts"], strict=True)}),
            "",
            *_lines(**_provenance(summary)),
        ]
    )


def words(name: str) -> str:
    """Return a key of the summary as a label."""
    return name.replace("_", " ").replace("logp", "log p")


def signed(value: float) -> str:
    """Return a number for the page with a minus sign as wide as a digit; copied lines get a hyphen."""
    return number(value).replace("-", "−")


def bar(value: float, top: float, width: int = _BAR) -> str:
    """Return a bar of `width` characters at `top`, in eighths of a character; any value above 0 shows."""
    if value <= 0:
        return ""
    eighths = max(1, round(8 * width * value / top))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return every leaf of nested settings by its dotted key."""
    leaves: dict[str, str] = {}
    for key, value in settings.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return leaves


def _lines(**values: Any) -> list[str]:
    return [printable(f"{words(name):{_LABEL}}{value}") for name, value in values.items()]


def _bars(counts: dict[str, float]) -> list[str]:
    top = max(counts.values())
    return [f"{label:>{_LABEL - 2}}  {bar(count, top)} {number(count)}" for label, count in counts.items()]


def _provenance(summary: dict[str, Any]) -> dict[str, str]:
    reference = summary["reference"]
    rope = ", ".join(f"{words(key)} {value}" for key, value in reference["rope"].items())
    values = {
        "ref_context": summary["ref_context"],
        "reference_model": f"{reference['dtype']}, {rope or 'no rope settings'}",
        "reference_weights": f"sha256 {reference['weights_sha256']}",
        "tokenizer": f"{summary['tokenizer_fingerprint']}, vocabulary {number(summary['vocab_size'])}",
        "chat_template": summary["chat_template_hash"],
    }
    for stage, settings in summary["generation"].items():
        # Prompts are too long for a line, and the reference model has lines of its own.
        values[f"made_by_{stage}"] = ", ".join(
            f"{key} {value}"
            for key, value in flatten(settings).items()
            if len(value) <= _LONGEST_SETTING and key.split(".")[0] not in ("prompts", "model")
        )
    return values


class Mark(NamedTuple):
    """A bar from `x` to `x` + `width`, or a point if it has no width. `kind` is its class, `note` is shown on hover."""

    kind: str
    note: str
    x: float
    width: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Marks over two axes, each given as even edges."""

    title: str
    axis: str
    across: list[float]
    up: list[float]
    marks: list[Mark]
    legend: tuple[str, ...] = ()
    median: float | None = None


def draw(summary: dict[str, Any], values: Values) -> list[Plot]:
    """Return the page's plots in order."""
    rows = [
        ("Margins of documents", "log p(chosen) − log p(rejected)", {"signed": "margin_per_document"}),
        ("Similarity of the answers to a turn", "0 nothing shared, 1 equal", {"all": "similarity_per_turn"}),
        ("Length of answers", "tokens", {side: f"{side}_tokens_per_turn" for side in _SIDES}),
        ("Mean log-prob of answers", "log p per token", {side: f"{side}_logp_per_token" for side in _SIDES}),
        ("Length of sequences", "tokens", {"all": "tokens_per_sequence"}),
    ]
    plots = [histogram(summary, *row) for row in rows]
    plots.insert(
        1, scatter("Margin and length", "tokens", values["tokens_per_sequence"], values["margin_per_document"])
    )
    return plots


def histogram(summary: dict[str, Any], title: str, axis: str, series: dict[str, str]) -> Plot:
    """Return bars of one of the summary's histograms with its median, or of several over the same edges side by side.

    `series` maps classes to names. The class "signed" stands for "rejected" below 0 and "chosen" above.
    """
    marks, (first, *others) = [], series.values()
    across = summary["histograms"][first]["edges"]
    width = (across[1] - across[0]) / len(series)
    for place, (kind, name) in enumerate(series.items()):
        for low, high, count in zip(across[:-1], across[1:], summary["histograms"][name]["counts"], strict=True):
            shown = ("rejected" if high <= 0 else "chosen") if kind == "signed" else kind
            marks.append(
                Mark(shown, f"{low:g} to {high:g}: {count}".replace("-", "−"), low + place * width, width, count)
            )
    return Plot(
        title=title,
        axis=axis,
        across=across,
        up=even_edges(0, max(mark.y for mark in marks), bins=4, whole=True),
        marks=marks,
        legend=tuple(series) if others else (),
        median=None if others else summary["distributions"][first]["median"],
    )


def scatter(title: str, axis: str, xs: np.ndarray, ys: np.ndarray) -> Plot:
    """Return points, of class "chosen" above 0 and "rejected" below; at most 2,000 of them, evenly picked."""
    across = even_edges(float(xs.min()), float(xs.max()), bins=8, whole=True)
    up = even_edges(min(float(ys.min()), 0.0), max(float(ys.max()), 0.0), bins=5)
    marks = []
    for index in np.unique(np.linspace(0, len(xs) - 1, min(len(xs), _MOST_POINTS)).round().astype(int)):
        note = f"document {index + 1}: {number(xs[index])} tokens, margin {signed(ys[index])}"
        marks.append(Mark("chosen" if ys[index] > 0 else "rejected", note, xs[index], 0, ys[index]))
    return Plot(title=title, axis=axis, across=across, up=up, marks=marks)
