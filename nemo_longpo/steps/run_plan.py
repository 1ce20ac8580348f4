"""Run the steps of a plan that are not done, one after another, and record each."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_longpo import atomic, terminal
from nemo_longpo.errors import InputError

from . import plan, process


def run_steps(
    steps: Sequence[plan.Step], output: Path, *, redo: str | None = None, known: plan.Records | None = None
) -> plan.Records:
    """Run what is not done and return what is known of each step; progress and times go to standard error.

    `known` stands in for a missing `steps.json`, for outputs that were begun without one.

    Raises InputError, before anything is run, if another run is at work on the output, a step's settings changed, or a
    finished step has read what would be made again; later, if a step fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    with atomic.stopped_by_sigterm(), _alone(output) as lock:
        records = plan.read_records(output, known)
        turns = plan.judge(steps, records, redo)
        for turn in turns:
            if turn.state == plan.REFUSED:
                raise InputError(turn.why)
        for step in [turn.step for turn in reversed(turns) if turn.state == plan.TO_REDO]:
            _remove(step, output, records)
        runner = _Runner(output, records, lock)
        width = max([9, *(len(step.name) for step in steps)])
        for number, turn in enumerate(turns, 1):
            step, label = turn.step, f"[{number:2d}/{len(turns)}] {turn.step.name:<{width}} {turn.step.title}"
            if turn.state == plan.DONE:
                terminal.note(f"{label}: already done")
                record = records.get(step.name) or plan.Record(settings=step.recorded_settings())
                records[step.name] = replace(record, seconds=record.seconds or 0.0, report=turn.report or record.report)
            else:
                runner.run(step, label)
    return {step.name: records[step.name] for step in steps}


def _remove(step: plan.Step, output: Path, records: plan.Records) -> None:
    """Remove the outputs of a step, by a rename first: a step that is half removed would be taken for a started one."""
    hidden = [path.with_name(f".{path.name}.removed") for path in step.outputs]
    for old, new in zip(step.outputs, hidden, strict=True):
        shutil.rmtree(new, ignore_errors=True)
        if old.exists():
            old.rename(new)
    records.pop(step.name, None)
    plan.write_records(output, records)
    for path in hidden:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _alone(output: Path) -> Iterator[int | None]:
    """Hold the lock of the output and yield its descriptor, None where the file system has no locks."""
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(atomic.locked(output, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            working = [(name, record) for name, record in plan.read_records(output).items() if record.seconds is None]
            step = "".join(f", step {name!r} in process {record.process}" for name, record in working)
            raise InputError(f"{output}: a run is at work here{step}; wait for it to end, or stop it") from None
        except OSError:
            lock = None
        yield lock


@dataclass(frozen=True)
class _Runner:
    """Runs steps and notes it. Commands inherit the lock, so they guard the output when this process is killed."""

    output: Path
    records: plan.Records
    lock: int | None

    def run(self, step: plan.Step, label: str) -> None:
        started = time.monotonic()
        self._note(step, process=os.getpid())
        report = step.function() if step.function else None
        if step.command:
            log = self.output / "logs" / f"{step.name}.log"
            process.run_command(step, log, label, self.lock, lambda number: self._note(step, process=number))
        if missing := [str(path) for path in step.outputs if not path.exists()]:
            raise InputError(f"step {step.name!r} has ended and not written {', '.join(missing)}; run it again")
        seconds = round(time.monotonic() - started, 1)
        self._note(step, seconds=seconds, report=report or {})
        process.show_progress(f"{label}: {seconds:.0f} s", last=True)

    def _note(self, step: plan.Step, **known: Any) -> None:
        self.records[step.name] = plan.Record(settings=step.recorded_settings(), **known)
        plan.write_records(self.output, self.records)
