"""The summary as aligned lines for people, and how its names and numbers are written on the page."""

from typing import Any

from nemo_longpo.terminal import number, printable, share, size

from .shard_summary import SPREAD

_LABEL = 27
_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LONGEST_SETTING = 40


def format_summary(summary: dict[str, Any]) -> str:
    """Return counts, a table of spreads, two histograms, provenance. `--json` has what is too long for a line."""
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
    """Return a number for the page, where the minus lines up with digits; people who copy lines get the hyphen."""
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
