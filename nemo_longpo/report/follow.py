"""`longpo report RUN --follow`: what long work says of itself in `status.json`, redrawn until it ends."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo import live_status, terminal
from nemo_longpo.errors import InputError

_SECONDS = 1.0  # between two looks
_LINE_SECONDS = 20.0  # between two lines about the same step where there is no terminal
_QUIET_SECONDS = 60.0  # after which silence is said; more where one unit of work takes long
_DEEPEST = 6  # plans inside of plans
_BAR = 24


@dataclass(frozen=True)
class Work:
    """What the work on `output` says, and the work of its steps that are at it now."""

    output: Path
    status: live_status.Status
    steps: tuple["Work", ...] = ()

    @property
    def is_done(self) -> bool:
        return self.status.state == live_status.DONE

    @property
    def has_ended(self) -> bool:
        """A step may outlive the plan that has started it."""
        if self.status.state != live_status.RUNNING:
            return True
        return self.status.is_gone and all(step.has_ended for step in self.steps)

    @property
    def newest(self) -> live_status.Status:
        """What was said last, by a step rather than by its plan."""
        return max((step.newest for step in self.steps), key=lambda own: own.updated, default=self.status)

    def silence(self, now: float) -> float | None:
        """Seconds since anything was said, if that is long for this work."""
        newest = self.newest
        seconds = now - max(newest.updated, self.status.updated)
        usual = 4 / newest.rate if newest.rate else 0.0
        return seconds if not self.has_ended and seconds > max(_QUIET_SECONDS, usual) else None


def look(output: Path, depth: int = 0) -> Work | None:
    """Return what is said of the work on `output` now, None without any status."""
    status = live_status.read_status(output)
    return _with_steps(output, status, depth) if status else None


def _with_steps(output: Path, status: live_status.Status, depth: int) -> Work:
    names = status.inside if status.state == live_status.RUNNING and depth < _DEEPEST else []
    inside = live_status.read_inside(output, names, status.started)
    return Work(output, status, tuple(_with_steps(folder, found, depth + 1) for folder, found in inside))


def drawn(work: Work, now: float) -> list[str]:
    """The lines of a terminal view, from the plan to the steps at work."""
    lines = _drawn(work, now)
    if silent := work.silence(now):
        lines.append(f"  {_silence(work, silent)}")
    return lines


def _drawn(work: Work, now: float) -> list[str]:
    status, running = work.status, work.status.state == live_status.RUNNING
    lines = [f"{status.what}: {_state(status, now)}"]
    if running and status.total:
        share = min(status.done / status.total, 1)
        lines.append(f"  [{'=' * int(_BAR * share):<{_BAR}}] {share:4.0%}  {status.counts()}")
    lines += [f"  {said}" for said in (status.doing if running else "", "" if work.steps else status.said) if said]
    return [*lines, *(f"  {line}" for step in work.steps for line in _drawn(step, now))]


def line(work: Work, now: float) -> str:
    """The same on one line, for where nothing can be redrawn."""
    said = _line(work, now)
    return f"{said}; {_silence(work, silent)}" if (silent := work.silence(now)) else said


def _line(work: Work, now: float) -> str:
    status = work.status
    if not work.steps:
        return f"{status.what}: {', '.join(filter(None, (_state(status, now), status.line())))}"
    steps = "; ".join(_line(step, now) for step in work.steps)
    return f"{status.what}: {', '.join(filter(None, (status.doing, status.counts())))} > {steps}"


def _state(status: live_status.Status, now: float) -> str:
    running = status.state == live_status.RUNNING and not status.is_gone
    taken = live_status.duration(max(0.0, (now if running else status.updated) - status.started))
    if running:
        return f"at work for {taken}"
    if status.is_gone:
        return f"process {status.pid} is gone without a word, {taken} after its start; the same command continues"
    return f"{status.state} after {taken}"


def _silence(work: Work, seconds: float) -> str:
    newest = work.newest
    return (
        f"nothing was updated for {live_status.duration(seconds)}; look at process {newest.pid} on {newest.host}, "
        "and at its log"
    )


def follow(outputs: Sequence[Path], wait: Callable[[float], None] = time.sleep) -> int:
    """Show the work on all outputs until it has ended; return 0 if all of it is done, else 1.

    Raises InputError if one of them has no status.
    """
    found: dict[Path, Work] = {output: _first(output) for output in outputs}
    show = _Redrawn() if sys.stdout.isatty() else _Lines()
    while True:
        show(list(found.values()))
        if all(work.has_ended for work in found.values()):
            return 0 if all(work.is_done for work in found.values()) else 1
        wait(_SECONDS)
        for output in outputs:
            found[output] = look(output) or _without_status(found[output])


def _first(output: Path) -> Work:
    if work := look(output):
        return work
    if not output.exists():
        raise InputError(f"{output} does not exist; give the output of work that has been started")
    raise InputError(
        f"{output} holds no {live_status.NAME} that can be read; give a training run, the output of a data stage, "
        "of longpo eval or convert, or of longpo evolve, demo or data run, once it has been started"
    )


def _without_status(before: Work) -> Work:
    """Data stages and evaluations leave no status when they are done; an output that appears whole has none."""
    state = live_status.DONE if before.output.exists() else live_status.STOPPED
    return Work(before.output, live_status.ended(before.status, state))


class _Redrawn:
    """Draws over what it has drawn before."""

    def __init__(self) -> None:
        self._lines = 0

    def __call__(self, works: Sequence[Work]) -> None:
        columns, rows = shutil.get_terminal_size()
        now = time.time()
        text = [terminal.printable(line) for work in works for line in drawn(work, now)]
        text = [terminal.shortened(line, columns - 1) for line in text[: rows - 1]]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        print(up + "".join(f"\r\x1b[K{line}\n" for line in text) + "\x1b[J", end="", flush=True)
        self._lines = len(text)


class _Lines:
    """Prints a line when a step or a state has changed, and otherwise now and then."""

    def __init__(self) -> None:
        self._said: dict[Path, tuple[float, object]] = {}

    def __call__(self, works: Sequence[Work]) -> None:
        now = time.time()
        for work in works:
            what = list(_turns(work))
            when, before = self._said.get(work.output, (0.0, None))
            if what != before or (now - when >= _LINE_SECONDS and not work.has_ended):
                self._said[work.output] = (now, what)
                print(f"{time.strftime('%H:%M:%S')} {terminal.printable(line(work, now))}", flush=True)


def _turns(work: Work) -> Iterator[tuple[object, ...]]:
    """What of the work is worth a line when it changes."""
    status = work.status
    yield status.what, status.state, status.doing, status.is_gone
    for step in work.steps:
        yield from _turns(step)
