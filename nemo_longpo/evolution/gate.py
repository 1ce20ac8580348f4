"""The gate between rounds: whether enough pairs are left to train on, and whether short accuracy has held."""

from pathlib import Path
from typing import Any

from nemo_longpo import json_input
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.results.results_json import FORMAT

from .evolution_settings import GateLimits


class GateClosedError(InputError):
    """A result, not a fault of the input: the rounds end here."""


def check_pairs(report: Path, limits: GateLimits, step: str) -> dict[str, Any]:
    """Return the counts of pairs and of turns that are left, from the `report.json` of the filter stage.

    A pair is a document with all of its turns. Raises GateClosedError if there are fewer than the limit, InputError if
    the report is damaged.
    """
    counts = json_input.read_json_object(report, "run `longpo evolve` with --redo " + step)
    pairs, turns = (counts.get(name) for name in ("documents_out", "turns_out"))
    if not isinstance(pairs, int) or not isinstance(turns, int):
        raise InputError(f"{report} has no counts documents_out and turns_out; run `longpo evolve` with --redo {step}")
    if pairs < limits.fewest_pairs:
        reasons = ", ".join(f"{name} {count}" for name, count in counts.items() if name.startswith("dropped_"))
        raise GateClosedError(
            f"the gate is closed: {pairs:,} of {counts.get('documents_in', 0):,} pairs are left after filtering"
            f"{f' ({reasons})' if reasons else ''}, and gate.fewest_pairs is {limits.fewest_pairs:,}; give more "
            f"documents and --redo {step}, or lower it"
        )
    return {"pairs": pairs, "turns": turns}


def check_short(results: Path, limits: GateLimits, step: str) -> dict[str, Any]:
    """Return the change of short accuracy in points, the trained model against the base, from a `results.json`.

    Raises:
        GateClosedError: it fell by more than `limits.most_lost`.
        InputError: the file is damaged or of another form, or the two models have no short question in common.
    """
    content = json_input.read_json_object(results, f"run `longpo evolve` with --redo {step}")
    if content.get("format") != FORMAT:
        raise InputError(f"{results} is not of this version of longpo eval; run `longpo evolve` with --redo {step}")
    groups = {group["name"]: group for group in content["groups"]}
    if limits.short_tokens is None:
        parts, name = [groups["short"]] if "short" in groups else [], "short benchmarks"
    else:
        lengths = groups["long"]["by_length"] if "long" in groups else []
        parts = [part for part in lengths if part["length"] <= limits.short_tokens]
        name = f"questions of up to {limits.short_tokens:,} tokens"
    changes = [part["differences"][-1]["mean"] for part in parts if part["differences"]]
    if not changes:
        raise InputError(
            f"{results}: the two models have no {name} in common, so the gate cannot decide; ask for them "
            f"in 'evaluate', and give --redo {step}"
        )
    change = sum(changes) / len(changes)
    if change < -limits.most_lost:
        raise GateClosedError(
            f"the gate is closed: accuracy on {name} fell by {-change:.2f} points, and gate.most_lost is "
            f"{limits.most_lost:g}; the models of all rounds so far are kept"
        )
    return {"short_change": round(change, 6)}
