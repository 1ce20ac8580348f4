"""The summary as aligned lines for people."""

from collections.abc import Iterator
from typing import Any

from nemo_longpo.terminal import printable

from .numbers import number, share, size, words
from .shard_summary import SPREAD

_LABEL = 27
_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LONGEST_SETTING = 40


def format_summary(summary: dict[str, Any]) -> str:
    """Counts, a table of spreads, two histograms, provenance. What is too long for a line is in `--json` only."""
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
            *(_spread_line(name, spread) for name, spread in summary["distributions"].items()),
            "",
            *_lines(
                reference_prefers_chosen=", ".join(
                    f"{share(value)} of {words(name)}" for name, value in summary["reference_prefers_chosen"].items()
                )
            ),
            "",
            *_bars("tokens per sequence, documents", _length_rows(summary)),
            "",
            *_bars("margin per document, documents", _histogram_rows(summary["histograms"]["margin_per_document"])),
            "",
            *_lines(**_provenance(summary)),
        ]
    )


def bar(value: float, top: float, width: int = _BAR) -> str:
    """A bar of `width` characters at `top`, in eighths of a character; any value above 0 shows."""
    if value <= 0:
        return ""
    eighths = max(1, round(8 * width * value / top))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _lines(**values: Any) -> list[str]:
    return [printable(f"{words(name):{_LABEL}}{value}") for name, value in values.items()]


def _spread_line(name: str, spread: dict[str, float]) -> str:
    return f"{words(name):{_LABEL}}" + "".join(f"{number(spread[column]):>9}" for column in SPREAD)


def _length_rows(summary: dict[str, Any]) -> list[tuple[str, float]]:
    return [(f"≤ {int(bucket):,}", count) for bucket, count in summary["length_histogram"].items()]


def _histogram_rows(histogram: dict[str, list[float]]) -> list[tuple[str, float]]:
    edges, counts = histogram["edges"], histogram["counts"]
    starts, ends = edges[:-1], edges[1:]
    return [(f"{low:,g} … {high:,g}", count) for low, high, count in zip(starts, ends, counts, strict=True)]


def _bars(title: str, rows: list[tuple[str, float]]) -> list[str]:
    top = max(count for _, count in rows)
    return [title, *(f"{label:>{_LABEL - 2}}  {bar(count, top)} {number(count)}" for label, count in rows)]


def _provenance(summary: dict[str, Any]) -> dict[str, str]:
    reference = summary["reference"]
    rope = ", ".join(f"{words(key)} {value}" for key, value in reference["rope"].items())
    stages = {
        f"made_by_{stage}": ", ".join(f"{key} {value}" for key, value in flatten(settings) if _fits(key, value))
        for stage, settings in summary["generation"].items()
    }
    return {
        "ref_context": summary["ref_context"],
        "reference_model": f"{reference['dtype']}, {rope or 'no rope settings'}",
        "reference_weights": f"sha256 {reference['weights_sha256']}",
        "tokenizer": f"{summary['tokenizer_fingerprint']}, vocabulary {number(summary['vocab_size'])}",
        "chat_template": summary["chat_template_hash"],
    } | stages


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every leaf of nested settings."""
    if not isinstance(settings, dict):
        yield prefix, str(settings)
        return
    for key, value in settings.items():
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


def _fits(key: str, value: str) -> bool:
    """Prompts are too long for a line, and the reference model has lines of its own."""
    return len(value) <= _LONGEST_SETTING and key.split(".")[0] not in ("prompts", "model")
