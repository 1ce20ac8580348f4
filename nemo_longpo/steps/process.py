"""The process of one step: started with its output in a log, watched, and ended with all that it has started."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo import errors, terminal

from .plan import Step

_REPORT_SECONDS = 20  # between progress lines when standard error is not a terminal
_GRACE_SECONDS = 10  # for a command to end after Ctrl-C
_ERROR_LINES = 15
_FINISHED = re.compile(r"\[ *\d+/\d+\] .*: \d+ s")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a command is followed: its progress is shown behind `label`, if there is one; `stopped` ends it early.

    `newest` returns the newest line of the command's own status, "" without one, and `say` gets what is known instead.
    It inherits the descriptor `lock`. `started` is called with its process id.
    """

    label: str | None
    started: Callable[[int], None]
    newest: Callable[[], str]
    say: Callable[[str], None]
    stopped: threading.Event
    lock: int | None


class StoppedError(Exception):
    """A command was ended because the run as a whole is."""


def run_command(step: Step, log: Path, watch: Watch) -> None:
    """Run the command of a step until it ends. Whatever stops this function, Ctrl-C too, ends the command.

    Raises InputError if the command cannot be run or fails, and StoppedError.
    """
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
                pass_fds=() if watch.lock is None else (watch.lock,),
            )
        except OSError as error:
            raise errors.InputError(f"step {step.name!r}: {step.command[0]} cannot be run: {error.strerror}") from error
        try:
            watch.started(process.pid)
            _follow(process, watch, log)
        finally:
            if process.poll() is None:
                _stop(process)
    if process.returncode:
        raise _failure(step, process.returncode, log)


def show_progress(text: str, *, last: bool) -> None:
    """Rewrite the current line on a terminal, which `last` ends; elsewhere write a line."""
    if sys.stderr.isatty():
        line = terminal.printable(text)
        line = line if last else line[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
    else:
        terminal.note(text)


def _follow(process: "subprocess.Popen[bytes]", watch: Watch, log: Path) -> None:
    started = reported = time.monotonic()
    read, ended = 0, False
    while not ended:
        if watch.stopped.is_set():
            raise StoppedError
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            ended = True
        said = watch.newest() or _last_bar(log)
        watch.say(said)
        if watch.label is None:
            continue
        lines, read = _finished_steps(log, read)
        for line in lines:
            show_progress(f"  {line}", last=True)
        now = time.monotonic()
        if not ended and (sys.stderr.isatty() or now - reported > _REPORT_SECONDS):
            reported = now
            show_progress(f"{watch.label}: {now - started:.0f} s {said}", last=False)


def _finished_steps(log: Path, start: int) -> tuple[list[str], int]:
    """Return the lines of finished steps that a command which runs a plan wrote behind `start`, and the log's end."""
    with log.open("rb") as file:
        file.seek(start)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").splitlines()
    return [line for line in lines if _FINISHED.fullmatch(line)], start + len(whole)


def _last_bar(log: Path) -> str:
    """The newest progress bar in a log, as `tqdm` left it."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if "%|" in line), "")


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


def _failure(step: Step, status: int, log: Path) -> errors.InputError:
    said = log.read_text(errors="replace").replace("\r", "\n")
    if (sentence := errors.error_sentence(said)) is not None:
        return errors.InputError(f"step {step.name!r}: {sentence} (its log: {log})")
    print(terminal.printable_lines("\n".join(said.splitlines()[-_ERROR_LINES:])), file=sys.stderr)
    return errors.InputError(
        f"step {step.name!r} failed with exit status {status}; the lines above are the last ones of {log}, and the "
        f"same command continues here; it ran {shlex.join(step.command)}"
    )
