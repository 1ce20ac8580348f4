"""Run one stage over the parts of its input: resumable, atomic per part, shared by any number of processes.

A finished part is a file `part-00000.jsonl`, renamed into place when it is complete. `settings.json` says how the
parts were made; a later run with other settings is refused by naming them, instead of mixing two kinds of parts.
Every process starts with its own share of the parts, then takes what is left over, such as those of a lost machine.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_longpo.atomic import remove_leftovers, write_file
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

from ..jsonl import differences
from ..settings import Placement
from .claims import Claims, remove_claims
from .kept import Kept, remove_kept
from .placement import resolve_placement
from .progress import Progress, remove_shares
from .rows import REPAIR, SETTINGS_NAME, Row, Source, read_counts

REPORT_NAME = "report.json"


@dataclass(frozen=True)
class PartResult:
    """The records of one finished part, and what happened on the way: counts by name, summed in the report."""

    records: list[dict[str, Any]]
    counts: Counter[str]


Process = Callable[[list[Row], Progress], PartResult]


@dataclass(frozen=True)
class Stage:
    """What to run. `settings` are those that change the output; `make_process` loads what is expensive, on demand.

    A process gets the rows of one part, and the Progress to call with what each finished model request took. With
    `num_workers` > 1 the stage is pickled, `make_process` included.
    """

    name: str
    source: Source
    output: Path
    settings: dict[str, Any]
    make_process: Callable[[], Process]
    placement: Placement = field(default_factory=Placement)
    num_workers: int = 1

    def part(self, number: int) -> Path:
        return self.output / f"part-{number:05d}.jsonl"

    def finished(self) -> set[int]:
        """The numbers of the parts that are there, by one look into the directory."""
        names = set(os.listdir(self.output)) if self.output.is_dir() else set()
        return {number for number in range(len(self.source.rows_in_parts)) if self.part(number).name in names}

    def counts(self, number: int) -> Path:
        return self.output / f"counts-{number:05d}.json"


def run_stage(stage: Stage) -> dict[str, int]:
    """Make the missing parts, unless it is a dry run; returns the summed counts, or {} while some part is missing.

    Raises InputError if the output was made with other settings, or is not a stage's output.
    """
    stage = replace(stage, placement=resolve_placement(stage.placement))
    description = {
        "stage": stage.name,
        "parts": len(stage.source.rows_in_parts),
        "settings": stage.settings,
        "input": stage.source.identity(),
        "history": stage.source.history(),
    }
    _check_output(stage.output, description)
    missing = not _is_finished(stage) and not stage.placement.dry_run
    if missing and stage.num_workers > 1:
        _share_out(stage, description)
    elif missing:
        _make_parts(stage, description)
    return _report(stage)


def _share_out(stage: Stage, description: dict[str, Any]) -> None:
    """The same stage in several processes of this machine, each with a share of this process's share."""
    workers = stage.num_workers
    placements = [
        replace(
            stage.placement,
            rank=stage.placement.rank * workers + worker,
            world_size=stage.placement.world_size * workers,
        )
        for worker in range(workers)
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        shares = [replace(stage, placement=placement, num_workers=1) for placement in placements]
        running = [pool.submit(_make_parts, share, description, position) for position, share in enumerate(shares)]
        try:
            for future in running:
                future.result()
        except BrokenProcessPool as error:
            raise InputError(
                f"a worker of stage {stage.name!r} was killed, perhaps for lack of memory; finished parts are kept: "
                "run the same command to continue, with fewer num_workers or a smaller part_size if it happens again"
            ) from error


def _make_parts(stage: Stage, description: dict[str, Any], position: int = 0) -> None:
    """This process's share of the missing parts, then whatever is missing and not claimed."""
    process: Process | None = None
    parts = stage.source.rows_in_parts
    stage.output.mkdir(parents=True, exist_ok=True)
    try:
        with Claims(stage.output) as claims, _progress(stage, position) as progress:
            for own in (True, False):
                for number, rows in stage.source.parts(_Wanted(stage, claims, own)):
                    process = process or stage.make_process()
                    progress.begin(number, Kept(stage.output, number, _digest(description)))
                    result = _work(process, rows, progress)
                    _commit_part(stage, number, result, progress.usage(), description)
                    progress.kept.drop()
                    claims.release(str(number))
                    progress.end()
    except KeyboardInterrupt:
        if position == 0:
            done = f"{len(stage.finished())} of {len(parts)} parts are finished and kept"
            more = ", and of others the finished requests" if any(stage.output.glob(".kept-*")) else ""
            tqdm.write(f"{stage.name}: stopped; {done}{more}", file=sys.stderr)
        raise
    finally:
        # A directory that got no part does not stay.
        with suppress(OSError):
            stage.output.rmdir()


def _progress(stage: Stage, position: int) -> Progress:
    return Progress(stage.name, stage.source.rows_in_parts, stage.finished, stage.output, position)


def _work(process: Process, rows: list[Row], progress: Progress) -> PartResult:
    try:
        return process(rows, progress)
    except InputError:
        progress.kept.drop()  # whoever corrects the input has other requests
        raise


def _digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Wanted:
    """Claims a part when asked whether it is wanted: those of this process's share, or those of the others."""

    stage: Stage
    claims: Claims
    own: bool

    def __call__(self, number: int) -> bool:
        placement = self.stage.placement
        if (number % placement.world_size == placement.rank) is not self.own or self._is_done(number):
            return False
        if not self.claims.take(str(number)):
            return False
        # Another process may have committed the part and dropped its claim between the look and the claim.
        if self._is_done(number):
            self.claims.release(str(number))
            return False
        return True

    def _is_done(self, number: int) -> bool:
        return self.stage.part(number).is_file()


def _commit_part(
    stage: Stage, number: int, result: PartResult, usage: Counter[str], description: dict[str, Any]
) -> None:
    settings = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    write_file(stage.output / SETTINGS_NAME, settings, keep_existing=True)
    _check_output(stage.output, description)
    write_file(stage.counts(number), json.dumps(+(result.counts + usage), sort_keys=True) + "\n")
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in result.records)
    write_file(stage.part(number), "".join(lines))


def _check_output(output: Path, description: dict[str, Any]) -> None:
    if output.is_file():
        raise InputError(f"{output} is a file; give a directory for the output")
    # Hidden files are claims and partial files of processes at work.
    if not output.is_dir() or all(path.name.startswith(".") for path in output.iterdir()):
        return
    path = output / SETTINGS_NAME
    if not path.is_file():
        raise InputError(f"{output} is not empty and holds no {SETTINGS_NAME}; give another output or empty it")
    changes = differences(read_json_object(path, REPAIR), description)
    if changes:
        raise InputError(
            f"{output} was made with other settings: {'; '.join(changes)}; repeat the old settings to continue it, or "
            "give another output"
        )


def _is_finished(stage: Stage) -> bool:
    return len(stage.finished()) == len(stage.source.rows_in_parts)


def _report(stage: Stage) -> dict[str, int]:
    """Sum the counts of all parts once they are all there; every process that comes last writes the same report."""
    if not _is_finished(stage):
        return {}
    path = stage.output / REPORT_NAME
    if path.is_file():
        return read_counts(path)
    total: Counter[str] = Counter()
    for number in range(len(stage.source.rows_in_parts)):
        total.update(read_counts(stage.counts(number)))
    report = dict(sorted(total.items()))
    write_file(path, json.dumps(report, indent=2) + "\n")
    remove_claims(stage.output)
    remove_kept(stage.output)
    remove_shares(stage.output)
    remove_leftovers(stage.output)
    return report
