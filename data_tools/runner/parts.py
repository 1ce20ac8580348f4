"""Run one stage over the parts of its input: resumable, atomic per part, shared by any number of processes.

A finished part is a file `part-00000.jsonl`, renamed into place when it is complete. `settings.json` records how the
parts were made; a later run with other settings is refused with their names, so that parts never mix. Every process
starts with its own share of the parts, then takes the remaining ones, such as those of a lost machine.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_longpo import atomic, json_input, live_status
from nemo_longpo.errors import InputError

from ..options import differences
from ..settings import WorkShare
from .claims import Claims, remove_claims, resolve_share
from .progress import Kept, Progress, remove_kept, remove_shares
from .rows import REPAIR, SETTINGS_NAME, Row, Source, read_counts

REPORT_NAME = "report.json"


@dataclass(frozen=True)
class PartResult:
    """The records of one finished part, and counts by name, which the report sums over all parts."""

    records: list[dict[str, Any]]
    counts: Counter[str]


Process = Callable[[list[Row], Progress], PartResult]


@dataclass(frozen=True, kw_only=True)
class PartsJob:
    """What to run. `settings` are those that change the output; `make_process` loads a model only when needed.

    A process gets the rows of one part, and the Progress to call with the usage of each finished model request. With
    `num_workers` > 1 the stage is pickled, `make_process` included.
    """

    name: str
    source: Source
    output: Path
    settings: dict[str, Any]
    make_process: Callable[[], Process]
    share: WorkShare = field(default_factory=WorkShare)
    num_workers: int = 1

    def part(self, number: int) -> Path:
        return self.output / f"part-{number:05d}.jsonl"

    def finished(self) -> set[int]:
        """Return the numbers of the finished parts, by listing the directory once."""
        names = set(os.listdir(self.output)) if self.output.is_dir() else set()
        return {number for number in range(len(self.source.rows_in_parts)) if self.part(number).name in names}

    def counts(self, number: int) -> Path:
        return self.output / f"counts-{number:05d}.json"


def run_parts(job: PartsJob) -> dict[str, int]:
    """Make the missing parts, unless it is a dry run; return the summed counts, or {} while some part is missing.

    Raises InputError if the output was made with other settings, or is not a stage's output.
    """
    job = replace(job, share=resolve_share(job.share))
    description = {
        "stage": job.name,
        "parts": len(job.source.rows_in_parts),
        "settings": job.settings,
        "input": job.source.identity(),
        "history": job.source.history(),
    }
    _check_output(job.output, description)
    missing = not _is_finished(job) and not job.share.dry_run
    if missing and job.num_workers > 1:
        _share_out(job, description)
    elif missing:
        _make_parts(job, description)
    return _report(job)


def _share_out(job: PartsJob, description: dict[str, Any]) -> None:
    """Run the stage in several processes of this machine, each with a share of this process's share."""
    workers = job.num_workers
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = []
        for worker in range(workers):
            rank, world_size = job.share.rank * workers + worker, job.share.world_size * workers
            share = replace(job.share, rank=rank, world_size=world_size)
            running.append(pool.submit(_make_parts, replace(job, share=share, num_workers=1), description, worker))
        try:
            for future in running:
                future.result()
        except BrokenExecutor as error:
            raise InputError(
                f"a worker of stage {job.name!r} was killed, perhaps for lack of memory; finished parts are kept: "
                "run the same command to continue, with fewer num_workers or a smaller part_size if it happens again"
            ) from error


def _make_parts(job: PartsJob, description: dict[str, Any], position: int = 0) -> None:
    """Make this process's share of the missing parts, then other missing parts that are not claimed."""
    process: Process | None = None
    parts = job.source.rows_in_parts
    job.output.mkdir(parents=True, exist_ok=True)
    try:
        with Claims(job.output) as claims, _progress(job, position) as progress:
            for own in (True, False):
                for number, rows in job.source.parts(_Wanted(job, claims, own)):
                    process = process or job.make_process()
                    progress.begin(number, Kept(job.output, number, _digest(description)))
                    result = _work(process, rows, progress)
                    _commit_part(job, number, result, progress.usage(), description)
                    progress.kept.drop()
                    claims.release(str(number))
                    progress.end()
    except KeyboardInterrupt:
        if position == 0:
            done = f"{len(job.finished())} of {len(parts)} parts are finished and kept"
            more = ", and of others the finished requests" if any(job.output.glob(".kept-*")) else ""
            tqdm.write(f"{job.name}: stopped; {done}{more}", file=sys.stderr)
        raise
    finally:
        # Remove a directory that got no part.
        with suppress(OSError):
            if os.listdir(job.output) == [live_status.NAME]:
                (job.output / live_status.NAME).unlink()
            job.output.rmdir()


def _progress(job: PartsJob, position: int) -> Progress:
    return Progress(job.name, job.source.rows_in_parts, job.finished, job.output, position)


def _work(process: Process, rows: list[Row], progress: Progress) -> PartResult:
    try:
        return process(rows, progress)
    except InputError:
        progress.kept.drop()  # a corrected input has other requests
        raise


def _digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Wanted:
    """Claims a part when asked whether it is wanted: one of this process's share, or one of the others."""

    job: PartsJob
    claims: Claims
    own: bool

    def __call__(self, number: int) -> bool:
        share = self.job.share
        if (number % share.world_size == share.rank) is not self.own or self._is_done(number):
            return False
        if not self.claims.take(str(number)):
            return False
        # Another process may have committed the part and dropped its claim between our check and our claim.
        if self._is_done(number):
            self.claims.release(str(number))
            return False
        return True

    def _is_done(self, number: int) -> bool:
        return self.job.part(number).is_file()


def _commit_part(
    job: PartsJob, number: int, result: PartResult, usage: Counter[str], description: dict[str, Any]
) -> None:
    settings = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    atomic.write_file(job.output / SETTINGS_NAME, settings, keep_existing=True)
    _check_output(job.output, description)
    atomic.write_file(job.counts(number), json.dumps(+(result.counts + usage), sort_keys=True) + "\n")
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in result.records)
    atomic.write_file(job.part(number), "".join(lines))


def _check_output(output: Path, description: dict[str, Any]) -> None:
    if output.is_file():
        raise InputError(f"{output} is a file; give a directory for the output")
    # Hidden files are claims and partial files of running processes.
    if not output.is_dir() or all(
        path.name.startswith(".") or path.name == live_status.NAME for path in output.iterdir()
    ):
        return
    path = output / SETTINGS_NAME
    if not path.is_file():
        raise InputError(f"{output} is not empty and holds no {SETTINGS_NAME}; give another output or empty it")
    changes = differences(json_input.read_json_object(path, REPAIR), description)
    if changes:
        raise InputError(
            f"{output} was made with other settings: {'; '.join(changes)}; repeat the old settings to continue it, or "
            "give another output"
        )


def _is_finished(job: PartsJob) -> bool:
    return len(job.finished()) == len(job.source.rows_in_parts)


def _report(job: PartsJob) -> dict[str, int]:
    """Sum the counts of all parts once none is missing; several last processes write the same report."""
    if not _is_finished(job):
        return {}
    path = job.output / REPORT_NAME
    if path.is_file():
        return read_counts(path)
    total: Counter[str] = Counter()
    for number in range(len(job.source.rows_in_parts)):
        total.update(read_counts(job.counts(number)))
    report = dict(sorted(total.items()))
    atomic.write_file(path, json.dumps(report, indent=2) + "\n")
    remove_claims(job.output)
    remove_kept(job.output)
    remove_shares(job.output)
    atomic.remove_leftovers(job.output)
    return report
