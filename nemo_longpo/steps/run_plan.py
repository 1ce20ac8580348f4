"""Run the steps of a plan that are not done, one after another or several at a time, and record each."""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo import atomic, live_status, terminal
from nemo_longpo.errors import InputError

from . import plan, process


def run_steps(
    steps: Sequence[plan.Step],
    output: Path,
    *,
    redo: Collection[str] = (),
    known: plan.Records | None = None,
    jobs: int = 1,
) -> plan.Records:
    """Run what is not done and return what is known of each step; progress and times go to standard error.

    `known` stands in for a missing `steps.json`, for outputs that were begun without one. With several `jobs`, so many
    steps run at the same time, functions in threads: in the order of the plan, each once what it reads is whole. When
    one fails, those that do not read its outputs, directly or not, still run.

    Raises InputError, before anything is run, if another run is at work on the output, a step's settings changed, or a
    finished step has read what would be made again; later, if a step fails: with several jobs, at the end.
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
        runner = _Runner(output=output, records=records, lock=lock, show_bars=jobs == 1)
        width = max([9, *(len(step.name) for step in steps)])
        waiting: list[tuple[plan.Step, str]] = []
        for number, turn in enumerate(turns, 1):
            label = f"[{number:2d}/{len(turns)}] {turn.step.name:<{width}} {turn.step.title}"
            if turn.state == plan.DONE:
                runner.recall(turn, label)
            else:
                waiting.append((turn.step, label))
        if waiting:  # else nothing is written
            done = len(turns) - len(waiting)
            with live_status.StatusFile(
                output, output.absolute().name, timed=False, done=done, total=len(turns), unit="step"
            ) as status:
                runner = replace(runner, board=_Board(output=output, status=status, done=done))
                _run_waiting(runner, waiting, jobs)
    return {step.name: records[step.name] for step in steps}


def _run_waiting(runner: "_Runner", waiting: list[tuple[plan.Step, str]], jobs: int) -> None:
    if jobs > 1:
        _run_at_once(runner, waiting, jobs)
        return
    for step, label in waiting:
        runner.run(step, label)


def _run_at_once(runner: "_Runner", waiting: list[tuple[plan.Step, str]], jobs: int) -> None:
    """Run each step once those whose outputs it reads have ended well. Raises the error of the first that failed."""
    running: dict[futures.Future[None], plan.Step] = {}
    failed: list[plan.Step] = []
    errors: list[BaseException] = []

    def held_up(step: plan.Step, by: Sequence[plan.Step]) -> bool:
        return any(step.reads(path) for other in by for path in other.outputs)

    with futures.ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for step, _ in waiting:
                    if held_up(step, failed):
                        failed.append(step)  # so is what reads it, further down
                waiting = [own for own in waiting if own[0] not in failed]
                for own in list(waiting):
                    before = [step for step, _ in waiting[: waiting.index(own)]]
                    if len(running) < jobs and not held_up(own[0], [*before, *running.values()]):
                        waiting.remove(own)
                        running[pool.submit(runner.run, *own)] = own[0]
                for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                    step = running.pop(future)
                    if (error := future.exception()) is not None:
                        terminal.note(f"longpo: {error}")
                        failed.append(step)
                        errors.append(error)
        except BaseException:
            runner.stopped.set()
            raise
    if errors:
        raise errors[0]


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


@dataclass(kw_only=True)
class _Board:
    """The status of a plan, which says of each step at work what it is doing; steps may run in threads."""

    output: Path
    status: live_status.StatusFile
    done: int
    running: dict[str, tuple[plan.Step, str]] = field(default_factory=dict)
    writing: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def at_work(self, step: plan.Step) -> Iterator[None]:
        self.say(step, "", now=True)
        yield  # a step that fails stays on the board
        with self.writing:
            del self.running[step.name]
            self.done += 1
            self._show()

    def say(self, step: plan.Step, said: str, *, now: bool = False) -> None:
        with self.writing:
            self.running[step.name] = step, said
            self._show(now=now)

    def newest(self, step: plan.Step) -> str:
        """What the step says of itself, since the plan was started."""
        found = self.status.inside(step.statuses(self.output))
        return found.line() if found else ""

    def _show(self, *, now: bool = False) -> None:
        working = self.running.values()
        names = [step.name for step, _ in working]
        self.status.update(
            done=self.done,
            doing=", ".join(names) if len(names) > 1 else "".join(f"{step.name}: {step.title}" for step, _ in working),
            inside=[name for step, _ in working for name in step.statuses(self.output)],
            said=next((said for _, said in working), "") if len(names) == 1 else "",
            now=now,
        )


@dataclass(frozen=True, kw_only=True)
class _Runner:
    """Runs steps and notes it. Commands inherit the lock, so they guard the output when this process is killed."""

    output: Path
    records: plan.Records
    lock: int | None
    show_bars: bool
    board: _Board | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    noting: threading.Lock = field(default_factory=threading.Lock)

    def recall(self, turn: plan.Turn, label: str) -> None:
        """Say that a step is done, and keep what its check reports."""
        terminal.note(f"{label}: already done")
        record = self.records.get(turn.step.name) or plan.Record(settings=turn.step.recorded_settings())
        report = turn.report or record.report
        self.records[turn.step.name] = replace(record, seconds=record.seconds or 0.0, report=report)

    def run(self, step: plan.Step, label: str) -> None:
        assert self.board is not None, "there is one as soon as something is to run"
        with self.board.at_work(step):
            self._run(step, label, self.board)

    def _run(self, step: plan.Step, label: str, board: _Board) -> None:
        started = time.monotonic()
        self._note(step, process=os.getpid())
        report = step.function() if step.function else None
        if step.command:
            watch = process.Watch(
                label=label if self.show_bars else None,
                started=lambda number: self._note(step, process=number),
                newest=partial(board.newest, step),
                say=partial(board.say, step),
                stopped=self.stopped,
                lock=self.lock,
            )
            process.run_command(step, self.output / "logs" / f"{step.name}.log", watch)
        if missing := [str(path) for path in step.outputs if not path.exists()]:
            raise InputError(f"step {step.name!r} has ended and not written {', '.join(missing)}; run it again")
        if step.confirm:
            step.confirm()
        seconds = round(time.monotonic() - started, 1)
        self._note(step, seconds=seconds, report=report or {})
        process.show_progress(f"{label}: {seconds:.0f} s", last=True)

    def _note(self, step: plan.Step, **known: Any) -> None:
        with self.noting:
            self.records[step.name] = plan.Record(settings=step.recorded_settings(), **known)
            plan.write_records(self.output, self.records)
