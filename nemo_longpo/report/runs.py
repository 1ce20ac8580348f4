"""A training run as it lies on the disk: its metrics, held to what they should be, and what it was given."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_longpo import json_input
from nemo_longpo.checkpoints import run_directory, run_inputs
from nemo_longpo.errors import InputError
from nemo_longpo.terminal import count, printable

_SETTING = re.compile(r"([A-Za-z_][\w.]*)=(\S*)")
_LARGEST = 1e300
# In the output of `longpo evolve`, and of `longpo demo`, which is one round.
_ROUND, _TRAINING, _EVALUATION = "round-", "training", "evaluation"
_ADVICE = "copy the run's files again, or leave this run out"


@dataclass(frozen=True, kw_only=True)
class Run:
    """`steps` are the lines of `metrics` in order; `left_out` lines of it could not be read.

    `home` holds checkpoints and inputs; it need not exist, since metrics may have been copied alone. `label` is the
    run's name on the page.
    """

    label: str
    metrics: Path
    home: Path
    steps: tuple[dict[str, float], ...]
    left_out: int = 0

    @property
    def names(self) -> list[str]:
        """Every metric of the run, in the order of its first line that has it."""
        return list(dict.fromkeys(name for step in self.steps for name in step if name != "step"))

    def values(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of one metric, of the steps that have it."""
        return [(int(step["step"]), step[name]) for step in self.steps if name in step]

    @cached_property
    def inputs(self) -> run_inputs.RunInputs | None:
        """Raises InputError if the record is damaged."""
        return run_inputs.read_inputs(self.home / run_directory.INPUTS)

    @property
    def settings(self) -> dict[str, str]:
        """What the last command of the run set, and what its inputs' record says of the loss and the data."""
        found: dict[str, str] = {}
        command = self.home / run_directory.COMMAND
        if command.is_file():
            words = command.read_bytes().decode("utf-8", "replace")
            found |= {name: printable(value.strip("'\"")) for name, value in _SETTING.findall(words)}
            if recipe := re.search(r"(--factory|--recipe)\s+(\S+)", words):
                found = {recipe[1]: recipe[2]} | found
        if self.inputs:
            found |= {name: str(value) for name, value in self.inputs.loss.items()}
            given = {"start checkpoint": self.inputs.start} if self.inputs.start else {}
            given |= {f"shards {place}": shards for place, shards in enumerate(self.inputs.shards, 1)}
            found |= {f"{name}, sha256": own.fingerprint for name, own in given.items()}
        checkpoints = run_directory.list_checkpoints(self.home / run_directory.CHECKPOINTS)
        if checkpoints.newest:
            found["newest checkpoint"] = checkpoints.newest.name
        return found

    @property
    def versions(self) -> dict[str, str]:
        """Raises InputError if the record is damaged."""
        path = self.home / run_directory.INPUTS / run_inputs.VERSIONS_FILE
        if not path.exists():
            return {}
        return {name: str(value) for name, value in json_input.read_json_object(path, _ADVICE).items()}

    @property
    def warning(self) -> str:
        """A sentence about lines that could not be read, empty without any."""
        if not self.left_out:
            return ""
        lines = count(self.left_out, "line")
        return (
            f"{self.metrics}: left out {lines} that cannot be read, as a run that was killed or still writes has them"
        )


@dataclass(frozen=True)
class Place:
    """Where a run lies, under which name ("" for its own), and where an evaluation of its model would be."""

    label: str
    path: Path
    evaluation: Path | None = None


def find_places(given: Sequence[str]) -> list[Place]:
    """Return the runs of every `[NAME=]RUN`: itself, the training of a round, of each round with a step.

    Raises InputError if no round of an evolution has trained a step.
    """
    return [place for text in given for place in _places(text)]


def split_label(text: str) -> tuple[str, Path]:
    """Return NAME, "" without one, and RUN of `[NAME=]RUN`."""
    label, equals, rest = text.partition("=")
    if not equals or not label or "/" in label or Path(text).exists():
        label, rest = "", text
    return label, Path(rest)


def _places(text: str) -> list[Place]:
    label, path = split_label(text)
    whole = label or path.resolve().name
    rounds = {int(own.name.removeprefix(_ROUND)): own for own in path.glob(f"{_ROUND}[0-9]*") if _is_round(own)}
    begun = {number: own for number, own in sorted(rounds.items()) if _has_metrics(own / _TRAINING)}
    if rounds and not begun:
        raise InputError(f"no round in {path} has trained a step yet; wait until one has, or give another run")
    if begun:
        return [Place(f"{whole}, round {n}", own / _TRAINING, own / _EVALUATION) for n, own in begun.items()]
    if _is_round(path):
        return [Place(whole, path / _TRAINING, path / _EVALUATION)]
    return [Place(label, path)]


def _is_round(path: Path) -> bool:
    return path.name.removeprefix(_ROUND).isdecimal() and path.is_dir()


def _has_metrics(log_dir: Path) -> bool:
    return any(own.stat().st_size for own in log_dir.glob(f"{run_directory.TENSORBOARD}/*/{run_directory.METRICS}"))


def read_runs(places: Sequence[Place]) -> list[Run]:
    """Read the runs; one without a name has that of its directory.

    Raises InputError if there is no run, if its metrics are damaged, or if two have one name.
    """
    runs = [_read(place) for place in places]
    labels = [run.label for run in runs]
    if repeated := next((run for run in runs if labels.count(run.label) > 1), None):
        raise InputError(f"two runs are called {repeated.label!r}; name them, as in first={places[0].path}")
    return runs


def _read(place: Place) -> Run:
    metrics = _find_metrics(place.path)
    steps, left_out = run_directory.read_metrics_file(metrics)
    if not steps:
        lines = "holds no line of metrics that can be read" if left_out else "is empty: the run has finished no step"
        raise InputError(f"{metrics} {lines}; {_ADVICE}")
    _check(steps, metrics)
    return Run(
        label=place.label or _name(place.path),
        metrics=metrics,
        home=run_directory.log_dir_of(metrics) / metrics.parent.name,
        steps=tuple(steps),
        left_out=left_out,
    )


def _name(path: Path) -> str:
    """The directory's name; of a directory with the usual name of a run, the one above it."""
    full = path.resolve()
    full = full.parent if full.name == run_directory.METRICS else full
    if full.parent.name == run_directory.TENSORBOARD:
        full = full.parent.parent / full.name
    return full.parent.name if full.name == run_directory.RUN_NAME else full.name


def _find_metrics(path: Path) -> Path:
    """Return the metrics of a `log.log_dir`, of a run's folder in it, or the file itself."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give a run's directory, what was log.log_dir")
    beside = run_directory.metrics_file(path.absolute().parent, path.absolute().name)
    for found in (path / run_directory.METRICS, beside):
        if found.is_file():
            return found
    inside = sorted(path.glob(f"{run_directory.TENSORBOARD}/*/{run_directory.METRICS}"))
    if len(inside) > 1:
        names = ", ".join(found.parent.name for found in inside)
        raise InputError(f"{path} holds several runs ({names}); give one of them, as in {path / inside[0].parent.name}")
    if not inside:
        raise InputError(
            f"{path} holds no {run_directory.TENSORBOARD}/NAME/{run_directory.METRICS}; give a run's directory, what "
            "was log.log_dir"
        )
    return inside[0]


def _check(steps: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Raises InputError at the first step that is out of order, or whose value is no number."""
    before = 0
    for step in steps:
        if step["step"] <= before:
            raise InputError(f"{path}: step {step['step']} stands behind step {before}; {_ADVICE}")
        before = step["step"]
        for name, value in step.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or _LARGEST < abs(value) < math.inf:
                raise InputError(f"{path}: {name!r} of step {before} should be a number, not {value!r:.40}; {_ADVICE}")


def finite(values: Sequence[tuple[int, float]]) -> list[float]:
    return [value for _, value in values if math.isfinite(value)]
