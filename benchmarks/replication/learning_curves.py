"""Accuracy of every objective over training steps, from what the evaluations of all seeds have written so far."""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from nemo_longpo import json_input
from nemo_longpo.evaluation.results import results_json

from . import experiment

_ADVICE = "remove the folder, and run the same command again"


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of values in percent, one per seed; `spread` is their standard deviation, None of a single one."""

    value: float
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.value:.1f}" if self.spread is None else f"{self.value:.1f} ± {self.spread:.1f}"

    @property
    def band(self) -> tuple[float, float]:
        """One standard deviation to each side, within 0 and 100."""
        spread = self.spread or 0.0
        return max(self.value - spread, 0.0), min(self.value + spread, 100.0)


Accuracy = dict[int, float]
"""Percent of right answers by length in tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """`found[part][model][seed]` is an accuracy; a part is an evaluation, such as an objective, `base` or `round-2`.

    `lengths` are those of the rounds, and `short_tokens` the longest that counts as short.
    """

    found: dict[str, dict[str, dict[int, Accuracy]]]
    lengths: tuple[int, ...]
    short_tokens: int

    def seeds(self, part: str) -> list[int]:
        """The seeds whose evaluation of this part is whole."""
        return sorted({seed for by_seed in self.found.get(part, {}).values() for seed in by_seed})

    def at(self, part: str, model: str, length: int | None) -> dict[int, float]:
        """Return the accuracy at a length by seed, or with None the mean over the short lengths."""
        values = {}
        for seed, accuracy in self.found.get(part, {}).get(model, {}).items():
            wanted = [length] if length else [tokens for tokens in accuracy if tokens <= self.short_tokens]
            if wanted and all(tokens in accuracy for tokens in wanted):
                values[seed] = statistics.fmean(accuracy[tokens] for tokens in wanted)
        return values

    def over_steps(self, part: str, length: int | None) -> dict[int, dict[int, float]]:
        """Return the accuracy of the checkpoints of a part by step and seed; every objective begins as LongPO does."""
        models = {model: int(number[1]) for model in self.found.get(part, {}) if (number := _STEP.fullmatch(model))}
        found = {number: self.at(part, model, length) for model, number in models.items()}
        if part in experiment.OBJECTIVES:
            of_start = self.at("longpo", experiment.START, length)
            found[0] = {seed: of_start[seed] for seed in self.seeds(part) if seed in of_start}
        return {number: found[number] for number in sorted(found) if found[number]}


_STEP = re.compile(r"step-(\d+)")


def read_curves(settings: experiment.Settings, seeds: Sequence[int], place: experiment.Place) -> Curves:
    """Read every evaluation that is there. Raises InputError if one is damaged."""
    numbers = range(2, len(settings.evolution["rounds"]) + 1)
    found: dict[str, dict[str, dict[int, Accuracy]]] = {}
    for part in (experiment.BASE, *settings.objectives, *(f"round-{number}" for number in numbers)):
        for seed in seeds:
            path = place.evaluation(seed, part) / "results.json"
            if path.exists():
                for model, length, mean in _answers(json_input.read_json_object(path, _ADVICE)):
                    found.setdefault(part, {}).setdefault(model, {}).setdefault(seed, {})[length] = mean
    lengths = tuple(own["length"] for own in settings.evolution["rounds"])
    return Curves(found=found, lengths=lengths, short_tokens=settings.short_tokens)


def _answers(content: dict[str, Any]) -> Iterator[tuple[str, int, float]]:
    """Yield model, length and percent of right answers of each task of a `results.json`."""
    assert content["format"] == results_json.FORMAT
    for task in content["tasks"]:
        for model, said in task["models"].items():
            if said["mean"] is not None and math.isfinite(said["mean"]):
                yield model, task["length"], said["mean"]


def last_step(curves: Curves, part: str) -> str | None:
    """Return the name of the last checkpoint of a part; None if nothing of it was measured."""
    numbers = [int(number[1]) for model in curves.found.get(part, {}) if (number := _STEP.fullmatch(model))]
    return f"step-{max(numbers)}" if numbers else None


def paired(first: dict[int, float], second: dict[int, float]) -> list[float]:
    """Return first - second for every seed of both."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def pairs_left(settings: experiment.Settings, seeds: Sequence[int], place: experiment.Place) -> dict[str, Any]:
    """Return, by round and seed, the pairs and the turns that the filter has left to train on."""
    found: dict[str, Any] = {}
    for number in range(1, len(settings.evolution["rounds"]) + 1):
        for seed in seeds:
            path = place.seed(seed) / f"round-{number}" / "data" / "filter" / "report.json"
            if path.exists():
                said = json_input.read_json_object(path, _ADVICE)
                counts = {"pairs": said.get("documents_out", 0), "turns": said.get("turns_out", 0)}
                found.setdefault(f"round-{number}", {})[seed] = counts
    return found
