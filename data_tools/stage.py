"""Run one stage over the parts of its input: resumable, atomic per part, split over ranks.

A finished part is a file `part-00000.jsonl`, renamed into place when it is complete. `settings.json` says how the
parts were made; a later run with other settings is refused by naming them, instead of mixing two kinds of parts.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_longpo.errors import InputError

from .rows import SETTINGS_NAME, Row, Source, read_json_object

REPORT_NAME = "report.json"


@dataclass(frozen=True)
class PartResult:
    """The records of one finished part, and what happened on the way: counts by name, summed in the report."""

    records: list[dict[str, Any]]
    counts: Counter[str]


Tick = Callable[[int], None]
Process = Callable[[list[Row], Tick], PartResult]


@dataclass(frozen=True)
class Stage:
    """What to run. `settings` are those that change the output; `make_process` loads what is expensive, on demand.

    A process gets the rows of one part and a function to call with the number of model requests it has finished.
    """

    name: str
    source: Source
    output: Path
    settings: dict[str, Any]
    make_process: Callable[[], Process]
    rank: int = 0
    world_size: int = 1


def run_stage(stage: Stage) -> dict[str, int]:
    """Make the missing parts of this rank; returns the summed counts when all parts of all ranks are there, else {}.

    Raises InputError if the output was made with other settings, or is not a stage's output.
    """
    if not 0 <= stage.rank < stage.world_size:
        raise InputError(f"--rank {stage.rank} must be at least 0 and below --world-size {stage.world_size}")
    rows = stage.source.rows_in_parts
    description = {
        "stage": stage.name,
        "parts": len(rows),
        "settings": stage.settings,
        "input": stage.source.identity(),
        "history": stage.source.history(),
    }
    _check_output(stage.output, description)
    mine = range(stage.rank, len(rows), stage.world_size)
    missing = [number for number in mine if not _part(stage.output, number).is_file()]
    done = sum(rows[number] for number in mine) - sum(rows[number] for number in missing)
    with tqdm(total=sum(rows[number] for number in mine), initial=done, desc=stage.name, unit="doc") as bar:
        _make_parts(stage, missing, description, bar)
    return _report(stage.output, len(rows))


def _make_parts(stage: Stage, missing: list[int], description: dict[str, Any], bar: tqdm) -> None:
    if not missing:
        return
    process = stage.make_process()
    requests = 0

    def tick(count: int) -> None:
        nonlocal requests
        requests += count
        bar.set_postfix(requests=requests)

    for number, part in stage.source.parts(set(missing)):
        result = process(part, tick)
        _claim(stage.output, description)
        _commit(_counts(stage.output, number), json.dumps(result.counts, sort_keys=True) + "\n")
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in result.records)
        _commit(_part(stage.output, number), "".join(lines))
        bar.update(len(part))


def _part(output: Path, number: int) -> Path:
    return output / f"part-{number:05d}.jsonl"


def _counts(output: Path, number: int) -> Path:
    return output / f"counts-{number:05d}.json"


def _check_output(output: Path, description: dict[str, Any]) -> None:
    if output.is_file():
        raise InputError(f"{output} is a file; give a directory for the output")
    if not output.is_dir() or not any(output.iterdir()):
        return
    path = output / SETTINGS_NAME
    if not path.is_file():
        raise InputError(f"{output} is not empty and holds no {SETTINGS_NAME}; give another output or empty it")
    changes = _differences(read_json_object(path), description)
    if changes:
        raise InputError(
            f"{output} was made with other settings: {'; '.join(changes)}; repeat the old settings to continue it, or "
            "give another output"
        )


def _claim(output: Path, description: dict[str, Any]) -> None:
    """Write the settings before the first part; another rank may have done so meanwhile."""
    _check_output(output, description)
    if not (output / SETTINGS_NAME).is_file():
        output.mkdir(parents=True, exist_ok=True)
        _commit(output / SETTINGS_NAME, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Readable differences of two JSON values: "settings.seed was 0, now 1"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        absent = "absent"
        return [
            change
            for key in keys
            for change in _differences(old.get(key, absent), new.get(key, absent), f"{name}.{key}" if name else key)
        ]
    # Settings compare as they are stored: a tuple comes back as a list.
    return [] if json.dumps(old) == json.dumps(new) else [f"{name} was {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _commit(path: Path, text: str) -> None:
    """All of the file or nothing, even if the machine stops."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _report(output: Path, parts: int) -> dict[str, int]:
    """Sum the counts of all parts once they are all there; every rank that comes last writes the same report."""
    if not all(_part(output, number).is_file() for number in range(parts)):
        return {}
    total: Counter[str] = Counter()
    for number in range(parts):
        total.update(read_json_object(_counts(output, number)))
    report = dict(sorted(total.items()))
    _commit(output / REPORT_NAME, json.dumps(report, indent=2) + "\n")
    return report
