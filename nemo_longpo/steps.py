"""Run a plan of steps in order: finished ones are skipped, and the same command continues after any stop.

`steps.json` in the plan's output holds for each step that was started its settings, seconds and report. A step is not
run with other settings than it was started with, and not again behind the back of a finished step that has read what
it wrote: both are refused with one sentence. `--redo STEP` removes the outputs of that step and of those that read
them, directly or not, and makes them again.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_longpo.atomic import locked, stopped_by_sigterm, write_file
from nemo_longpo.errors import InputError, error_sentence
from nemo_longpo.terminal import note, printable, printable_lines, show
from nemo_longpo.typed_fields import Count, Number, read_versioned

STATE_NAME = "steps.json"
_REPORT_SECONDS = 20  # between progress lines when standard error is not a terminal
_GRACE_SECONDS = 10  # for a command to end after Ctrl-C
_ERROR_LINES = 15

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One entry of a plan: a `command`, or a `function` that returns a report or None.

    A command runs in the folder of its log, `logs/NAME.log`, so its paths are absolute. `lines` are the command lines
    that a function starts, for `--dry-run`. `settings` decide what the outputs become. A step is done when it has run
    and its outputs exist; a step that knows better has a `check`. It returns the report of a finished step, {} if
    something is missing, and raises InputError if the outputs were made from something else.
    """

    name: str
    title: str
    command: tuple[str, ...] = ()
    function: Callable[[], Report | None] | None = None
    lines: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[], Report] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[], str] | None = None

    def reads(self, path: Path) -> bool:
        return any(path == source or path in source.parents for source in self.inputs)

    def command_lines(self) -> list[str]:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return [*self.lines, " ".join([*variables, shlex.join(self.command)])] if self.command else list(self.lines)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a step that was started; `seconds` is None until it has finished."""

    settings: dict[str, Any]
    seconds: Number | None = None
    report: dict[str, Any] = field(default_factory=dict)
    process: Count = 0


Records = dict[str, Record]


@dataclass(frozen=True)
class _State:
    steps: dict[str, Record]


@dataclass(frozen=True, kw_only=True)
class _Turn:
    step: Step
    state: str  # one of the four below
    why: str = ""
    report: Report = field(default_factory=dict)


_DONE, _TO_RUN, _TO_REDO, _REFUSED = "done", "to run", "to redo", "refused"


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add `--dry-run` and `--redo` to a command that runs a plan."""
    parser.add_argument("--dry-run", action="store_true", help="say what is done and what would run, and do nothing")
    parser.add_argument("--redo", metavar="STEP", help="make this step and those that read it again")


def show_plan(
    steps: Sequence[Step], output: Path, *, redo: str | None = None, known: Records | None = None, as_json: bool = False
) -> None:
    """Print for each step whether it is done, and the command lines of what would run; nothing is written."""
    plan: list[dict[str, Any]] = [
        {
            "step": turn.step.name,
            "state": turn.state,
            "why": turn.why,
            "commands": turn.step.command_lines() if turn.state in (_TO_RUN, _TO_REDO) else [],
        }
        for turn in _judge(steps, _read(output, known), redo)
    ]
    if as_json:
        print(json.dumps({"output": str(output), "plan": plan}))
        return
    for entry in plan:
        commands = entry.pop("commands")
        show("\n  ".join([": ".join(filter(None, entry.values())), *commands]))


def run_steps(steps: Sequence[Step], output: Path, *, redo: str | None = None, known: Records | None = None) -> Records:
    """Run what is not done and return what is known of each step; progress and times go to standard error.

    `known` stands in for a missing `steps.json`, for outputs that were begun without one.

    Raises InputError, before anything is run, if another run is at work on the output, a step's settings changed, or a
    finished step has read what would be made again; later, if a step fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    with stopped_by_sigterm(), _alone(output) as lock:
        records = _read(output, known)
        turns = _judge(steps, records, redo)
        for turn in turns:
            if turn.state == _REFUSED:
                raise InputError(turn.why)
        for step in [turn.step for turn in reversed(turns) if turn.state == _TO_REDO]:
            _remove(step, output, records)
        runner = _Runner(output, records, lock)
        for number, turn in enumerate(turns, 1):
            step, label = turn.step, f"[{number:2d}/{len(turns)}] {turn.step.name:<9} {turn.step.title}"
            if turn.state == _DONE:
                note(f"{label}: already done")
                record = records.get(step.name) or Record(settings=_stored(step))
                records[step.name] = replace(record, seconds=record.seconds or 0.0, report=turn.report or record.report)
            else:
                runner.run(step, label)
    return {step.name: records[step.name] for step in steps}


def _judge(steps: Sequence[Step], records: Records, redo: str | None) -> list[_Turn]:
    """Say of each step whether it is done."""
    names = [step.name for step in steps]
    if redo is not None and redo not in names:
        raise InputError(f"--redo {redo}: there is no such step; the steps are {', '.join(names)}")
    turns: list[_Turn] = []
    for step in steps:
        sources = [turn for turn in turns if turn.state != _DONE and any(map(step.reads, turn.step.outputs))]
        turns.append(_judge_step(step, records.get(step.name), sources, redo))
    return turns


def _judge_step(step: Step, record: Record | None, sources: list[_Turn], redo: str | None) -> _Turn:
    """Say whether one step is done; `sources` are the steps before it that are not and whose outputs it reads."""
    if step.name == redo or any(turn.state == _TO_REDO for turn in sources):
        return _Turn(step=step, state=_TO_REDO)
    old, new = record.settings if record else {}, _stored(step)
    changed = [name for name in {**old, **new} if old.get(name, "unset") != new.get(name, "unset")]
    if record and changed:
        changes = ", ".join(f"{name}={old.get(name, 'unset')} (now {new.get(name, 'unset')})" for name in changed)
        advice = f"give the old settings, another output, or --redo {step.name}"
        return _Turn(step=step, state=_REFUSED, why=f"step {step.name!r} was run with {changes}; {advice}")
    finished = record is not None and record.seconds is not None
    if sources and step.check is None and finished:
        source = sources[0].step.name
        why = f"step {step.name!r} is done and has read what step {source!r} would make again; give --redo {source}"
        return _Turn(step=step, state=_REFUSED, why=f"{why} to make both again")
    if sources:  # a step with a check of its own makes it when its turn has come and its input is whole
        return _Turn(step=step, state=_TO_RUN)
    if step.check is None:
        done = finished and all(path.exists() for path in step.outputs)
        return _Turn(step=step, state=_DONE if done else _TO_RUN)
    try:
        report = step.check()
    except InputError as error:
        return _Turn(step=step, state=_REFUSED, why=f"step {step.name!r}: {error}")
    return _Turn(step=step, state=_DONE if report else _TO_RUN, report=report)


def _stored(step: Step) -> dict[str, Any]:
    """The settings as they come back from a file."""
    return json.loads(json.dumps(dict(step.settings)))


def _read(output: Path, known: Records | None) -> Records:
    path = output / STATE_NAME
    if not path.exists():
        return dict(known or {})
    return dict(read_versioned(path, _State, 1, "remove it with all that lies beside it, or give another output").steps)


def _write(output: Path, records: Records) -> None:
    content = {"version": 1, "steps": {name: asdict(record) for name, record in records.items()}}
    write_file(output / STATE_NAME, json.dumps(content, indent=1))


def _remove(step: Step, output: Path, records: Records) -> None:
    """Remove the outputs of a step, by a rename first: a step that is half removed would be taken for a started one."""
    hidden = [path.with_name(f".{path.name}.removed") for path in step.outputs]
    for old, new in zip(step.outputs, hidden, strict=True):
        shutil.rmtree(new, ignore_errors=True)
        if old.exists():
            old.rename(new)
    records.pop(step.name, None)
    _write(output, records)
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
            lock = stack.enter_context(locked(output, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            working = [(name, record) for name, record in _read(output, None).items() if record.seconds is None]
            step = "".join(f", step {name!r} in process {record.process}" for name, record in working)
            raise InputError(f"{output}: a run is at work here{step}; wait for it to end, or stop it") from None
        except OSError:
            lock = None
        yield lock


@dataclass(frozen=True)
class _Runner:
    """Runs steps and notes it. Commands inherit the lock, so they guard the output when this process is killed."""

    output: Path
    records: Records
    lock: int | None

    def run(self, step: Step, label: str) -> None:
        started = time.monotonic()
        self._note(step, process=os.getpid())
        report = step.function() if step.function else None
        if step.command:
            self._run_command(step, label)
        if missing := [str(path) for path in step.outputs if not path.exists()]:
            raise InputError(f"step {step.name!r} has ended and not written {', '.join(missing)}; run it again")
        seconds = round(time.monotonic() - started, 1)
        self._note(step, seconds=seconds, report=report or {})
        _show(f"{label}: {seconds:.0f} s", last=True)

    def _note(self, step: Step, **known: Any) -> None:
        self.records[step.name] = Record(settings=_stored(step), **known)
        _write(self.output, self.records)

    def _run_command(self, step: Step, label: str) -> None:
        log = self.output / "logs" / f"{step.name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as file:
            try:
                # Libraries leave log files in the working directory; the logs' own folder is the place for them.
                process = subprocess.Popen(
                    step.command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | step.env,
                    cwd=log.parent,
                    start_new_session=True,
                    pass_fds=() if self.lock is None else (self.lock,),
                )
            except OSError as error:
                raise InputError(f"step {step.name!r}: {step.command[0]} cannot be run: {error.strerror}") from error
            try:
                self._note(step, process=process.pid)
                _watch(step, process, label, log)
            finally:
                if process.poll() is None:
                    _stop(process)
        if process.returncode:
            raise _failure(step, process.returncode, log)


def _watch(step: Step, process: "subprocess.Popen[bytes]", label: str, log: Path) -> None:
    started = reported = time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            return
        now = time.monotonic()
        if sys.stderr.isatty() or now - reported > _REPORT_SECONDS:
            reported = now
            said = step.progress() if step.progress else _last_bar(log)
            _show(f"{label}: {now - started:.0f} s {said}", last=False)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a command and all that it started, as Ctrl-C does, and by force where that is not enough."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(step: Step, status: int, log: Path) -> InputError:
    said = log.read_text(errors="replace").replace("\r", "\n")
    if (sentence := error_sentence(said)) is not None:
        return InputError(f"step {step.name!r}: {sentence} (its log: {log})")
    print(printable_lines("\n".join(said.splitlines()[-_ERROR_LINES:])), file=sys.stderr)
    return InputError(
        f"step {step.name!r} failed with exit status {status}; the lines above are the last ones of {log}, and the "
        f"same command continues here; it ran {shlex.join(step.command)}"
    )


def _last_bar(log: Path) -> str:
    """The newest progress bar in a log, as `tqdm` left it."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if "%|" in line), "")


def _show(text: str, *, last: bool) -> None:
    """Rewrite the current line on a terminal, which `last` ends; elsewhere write a line."""
    if sys.stderr.isatty():
        line = printable(text) if last else printable(text)[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
    else:
        note(text)
