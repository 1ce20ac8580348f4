"""Slurm jobs that outlive the command which has submitted them: the same command, given again, watches them further.

A file beside the jobs' scripts holds the number of each job until its end has been seen. It is written before the job
is submitted, and a job without a number is looked for by its name, so that no kill leads to a second job.
"""

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_longpo import atomic, terminal, typed_fields
from nemo_longpo.errors import InputError

from . import executors

COMPLETED = "COMPLETED"
# After these the same command may well succeed.
LOST = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
_ENDED = (COMPLETED, *LOST, "FAILED", "CANCELLED", "OUT_OF_MEMORY", "DEADLINE", "REVOKED")
_FIRST_POLL, _LAST_POLL = 1.0, 30.0  # seconds between questions to Slurm, which rise
_SILENCE = 300.0  # seconds that Slurm may know nothing of a job


@dataclass(frozen=True)
class Job:
    """A job as it is recorded. `number` is "" until Slurm has given one; `folders` is a pattern for its logs."""

    name: str
    folders: str
    number: str = ""


def run_tasks(
    tasks: Sequence[executors.Task], executor: Any, folder: Path, watch: Callable[[str], None]
) -> list[executors.Ended]:
    """Run tasks on an executor until they have ended, and call `watch` with a line about them meanwhile.

    Jobs of Slurm that are recorded in `folder` are not submitted again, and go on if this function is stopped; tasks
    of other executors end with it. The exit status of tasks is for the caller to judge.
    """
    if not is_slurm(executor):
        return executors.run_attached(tasks, executor, folder, watch)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [_attach(task, executor, folder) or _submit(task, executor, folder) for task in tasks]
    try:
        states = _wait(jobs, executor, watch)
    except (KeyboardInterrupt, SystemExit):
        numbers = " ".join(job.number for job in jobs)
        terminal.note(
            f"Slurm jobs go on: {numbers}; the same command watches them further, `scancel {numbers}` ends it"
        )
        raise
    ended = []
    for task, job in zip(tasks, jobs, strict=True):
        _record_file(task, folder).unlink()
        log, said = _tail(job, executor)
        ended.append(executors.Ended(task.name, log, said, states[job.number]))
    return ended


def is_slurm(executor: Any) -> bool:
    return type(executor).__name__ == executors.SLURM


def forget_ended(folder: Path, found: Sequence[Any]) -> None:
    """Remove the records of ended jobs. Raises InputError if one is at work, as one of the executors `found` says."""
    for path in sorted(folder.glob("*.job.json")):
        job = _read(path)
        for executor in found:
            number = job.number or _number_of(job, executor)
            state = states_of([replace(job, number=number)], executor).get(number, COMPLETED)
            if state not in _ENDED:
                raise InputError(
                    f"Slurm job {number}, {job.name}, is {state.lower()} and writes what would be removed; end it "
                    f"with `scancel {number}`, or wait for it, before --redo"
                )
        path.unlink()


def batch_script(task: executors.Task, executor: Any, folder: Path) -> str:
    """Return the batch script of a task that would be submitted."""
    return executors.batch_script(_named(task, folder), executor, folder)


def states_of(jobs: Sequence[Job], executor: Any) -> Mapping[str, str]:
    """Return the state of each job by its number, in Slurm's words; it is left out where Slurm knows nothing of it."""
    numbers = ",".join(job.number for job in jobs)
    said = executors.ask(executor, f"sacct --noheader --parsable2 --allocations --jobs={numbers} --format=JobID,State")
    said += executors.ask(
        executor, f"squeue --noheader --jobs={numbers} --format='%i|%T'"
    )  # the newest, while it lives
    rows = [line.split("|") for line in said.split("\n") if "|" in line]
    return {row[0].strip(): row[1].split()[0] for row in rows if row[1].strip()}


def _named(task: executors.Task, folder: Path) -> executors.Task:
    """Names of jobs are unique among all outputs."""
    return replace(task, name=f"{task.name}-{zlib.crc32(str(folder.absolute()).encode()):08x}")


def _record_file(task: executors.Task, folder: Path) -> Path:
    return folder / f"{task.name}.job.json"


def _read(path: Path) -> Job:
    return typed_fields.read_versioned(path, Job, 1, "end the job with scancel if there is one, and remove the file")


def _write(task: executors.Task, folder: Path, job: Job) -> Job:
    atomic.write_file(_record_file(task, folder), json.dumps({"version": 1, **asdict(job)}))
    return job


def _attach(task: executors.Task, executor: Any, folder: Path) -> Job | None:
    """Return the job of a task that was submitted before, None if there is none."""
    if not _record_file(task, folder).exists():
        return None
    job = _read(_record_file(task, folder))
    if not job.number:
        if not (number := _number_of(job, executor)):
            return None
        job = _write(task, folder, replace(job, number=number))
    terminal.note(f"{task.name}: Slurm job {job.number} was submitted before; it is watched further")
    return job


def _number_of(job: Job, executor: Any) -> str:
    """Return the number of a job that was submitted and not noted, "" if there is none at work."""
    return next(iter(executors.ask(executor, f"squeue --noheader --name={job.name} --format='%i'").split()), "")


def _submit(task: executors.Task, executor: Any, folder: Path) -> Job:
    named = _named(task, folder)
    prefix = executor.job_name_prefix or executors.JOB_PREFIX
    job = _write(task, folder, Job(prefix + named.name, executors.log_folders(named.name, executor, folder)))
    try:
        number = executors.submit(named, executor, folder)
    except InputError:
        _record_file(task, folder).unlink()
        raise
    job = _write(task, folder, replace(job, number=number))
    terminal.note(f"{task.name}: Slurm job {number}, its logs in {job.folders}")
    return job


def _wait(jobs: Sequence[Job], executor: Any, watch: Callable[[str], None]) -> dict[str, str]:
    """Return the last state of each job by its number, once all have ended."""
    pause, heard, asked = _FIRST_POLL, time.monotonic(), 0.0
    states: dict[str, str] = {}
    while True:
        now = time.monotonic()
        if now - asked >= pause:
            asked, pause = now, min(1.3 * pause, _LAST_POLL)
            ended = {number: state for number, state in states.items() if state in _ENDED}
            states = {**ended, **states_of(jobs, executor)}
            missing = [job.number for job in jobs if job.number not in states]
            if all(states.get(job.number) in _ENDED for job in jobs):
                return states
            heard = heard if missing else now
            if now - heard > _SILENCE:
                raise InputError(
                    f"squeue and sacct have known nothing of job {missing[0]} for {_SILENCE:.0f} seconds; see whether "
                    "it runs, then give the same command again"
                )
        watch(", ".join(f"job {job.number} {states.get(job.number, 'submitted').lower()}" for job in jobs))
        time.sleep(_FIRST_POLL)


def _tail(job: Job, executor: Any) -> tuple[str, str]:
    """Return the pattern of a job's logs, and the end of the newest: of the command, or of the batch script."""
    for start in ("log-", "sbatch_"):
        pattern = f"{job.folders}/{start}*_{job.number}*.out"
        said = executors.ask(executor, f"ls -t {pattern} | head -n 1 | xargs -r tail -c {executors.LOG_BYTES}")
        if said.strip():
            return pattern, said
    return job.folders, ""
