"""How far long work has come, as a small file in what it writes: for `longpo report --follow`, a monitor, or `cat`.

`status.json` lies in the output directory of training, of a data stage, of an evaluation and of a plan of steps, and is
replaced about once a second. Data stages and evaluations remove it when they are done. For an output that appears whole
(shards, a converted model) it lies beside, as `.NAME.status.json`, while it is made. It is only looked at: no work
reads it, and work goes on where it cannot be written. Several processes that share an output leave the file to one of
them, and to another when that one is silent.
"""

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nemo_longpo import atomic, errors, typed_fields
from nemo_longpo.terminal import number, printable

NAME = "status.json"
RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"
_VERSION = 1
_SECONDS = 1.0  # between two writes
_SILENCE = 10.0  # seconds after which another process takes over


@dataclass(frozen=True, kw_only=True)
class Status:
    """`done` of `total` units, at `rate` units per second since `started`; times are seconds since 1970.

    `doing` names the step at work, `inside` directories, seen from here, where that step may say more. `said` is the
    newest line of the work itself. `processes` names the machine's or container's numbering that `pid` belongs to.
    """

    what: str
    state: str = RUNNING
    done: typed_fields.Number = 0
    total: typed_fields.Number | None = None
    unit: str = ""
    rate: typed_fields.Number | None = None
    seconds_left: typed_fields.Number | None = None
    doing: str = ""
    inside: typed_fields.Names = field(default_factory=list)
    said: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    started: typed_fields.Number = 0
    updated: typed_fields.Number = 0
    host: str = field(default_factory=socket.gethostname)
    pid: typed_fields.Count = field(default_factory=os.getpid)
    processes: str = field(default_factory=lambda: _numbering())

    @property
    def is_gone(self) -> bool:
        """Whether it says that it runs, and its process does not exist any more; only known on its own machine."""
        here = (socket.gethostname(), _numbering())
        return self.state == RUNNING and (self.host, self.processes) == here and not is_alive(self.pid)

    def line(self) -> str:
        """All of it in words: `12 of 200 steps, 3.2 s per step, 10 min left, loss 2.31`."""
        return ", ".join(filter(None, (self.doing, self.counts(), self.said)))

    def counts(self) -> str:
        """How far it has come."""
        if not self.total:
            return ""
        total = round(self.total, 1)
        parts = [f"{number(round(self.done, 1))} of {number(total)} {self.unit}{'s' * (total != 1)}"]
        if self.rate:
            slow = f"{duration(1 / self.rate)} per {self.unit}"
            parts.append(f"{number(self.rate)} {self.unit}s/s" if self.rate >= 1 else slow)
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time in the units that people say: `8.3 s`, `12 min`, `3 h 05 min`, `2 days 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


class StatusFile:
    """The status of one piece of work, which `update` changes and writes; a context manager that ends it.

    With `whole`, `output` appears when the work is done, and otherwise nothing is left. Without `kept`, the file goes
    when the work is done: the output says so itself, and has the same bytes each time. Units of work that is not
    `timed` take different times.
    """

    def __init__(
        self, output: Path, what: str, *, whole: bool = False, kept: bool = True, timed: bool = True, **known: Any
    ):
        self._output = output
        self._path = _beside(output) if whole else output / NAME
        self._whole, self._kept, self._timed = whole, kept and not whole, timed
        self._status = Status(what=printable(what), started=round(time.time(), 1), **known)
        self._written = -math.inf
        self.begin()
        self.update(now=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)

    def begin(self) -> None:
        """Time counts from here on, for what is done from here on."""
        self._begun, self._since = self._status.done, time.monotonic()

    def update(self, *, now: bool = False, **changes: Any) -> None:
        """Change fields of the status, and write it if the last time is a second ago, or `now`."""
        self._status = replace(self._status, **changes)
        if not now and time.monotonic() - self._written < _SECONDS:
            return
        self._written = time.monotonic()
        status = self._status
        seconds, done = time.monotonic() - self._since, status.done - self._begun
        rate = done / seconds if self._timed and seconds > 0 and done > 0 else None
        left = None if rate is None or status.total is None else max(0.0, status.total - status.done) / rate
        self._status = replace(status, rate=_rounded(rate), seconds_left=_rounded(left), said=printable(status.said))
        self._write()

    def end(self, error: BaseException | None = None, *, unfinished: bool = False) -> None:
        """Write how the work has ended; `unfinished` work is left to the other processes that share it."""
        if unfinished and error is None:
            return
        state, said = DONE, self._status.said
        if error is not None:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            state, said = (STOPPED, said) if stopped else (FAILED, printable(errors.one_line(error)))
        self._status = replace(self._status, state=state, said=said, seconds_left=None)
        if self._whole or (state == DONE and not self._kept):
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        else:
            self._write()

    def inside(self, names: Sequence[str]) -> Status | None:
        """What work on one of these directories, seen from the output, has said since this was started."""
        return next((found for _, found in read_inside(self._output, names, self._status.started)), None)

    def _write(self) -> None:
        found = _read(self._path)
        others = found is not None and (found.host, found.pid) != (self._status.host, self._status.pid)
        if others and found and found.state == RUNNING and not found.is_gone and time.time() - found.updated < _SILENCE:
            return
        self._status = replace(self._status, updated=round(time.time(), 1))
        metrics = {name: _finite(value) for name, value in self._status.metrics.items()}
        content = {"version": _VERSION} | asdict(self._status) | {"metrics": metrics}
        atomic.write_for_display(self._path, json.dumps(content, indent=1) + "\n")


def ended(status: Status, state: str) -> Status:
    """The same work, which has ended since."""
    return replace(status, state=state, said="", seconds_left=None, inside=[])


def read_status(output: Path) -> Status | None:
    """Return what is said of the work on `output`; None if nothing can be read."""
    return _read(output / NAME) or _read(_beside(output))


def read_inside(output: Path, names: Sequence[str], since: float) -> Iterator[tuple[Path, Status]]:
    """Yield directory and status of work on directories, seen from `output`, that has said something `since` then."""
    for name in names:
        found = read_status(output / name)
        if found and found.updated >= since:
            yield output / name, found


def _read(path: Path) -> Status | None:
    try:
        return typed_fields.read_versioned(path, Status, _VERSION, "")
    except errors.InputError:
        return None


def _beside(output: Path) -> Path:
    return output.absolute().with_name(f".{output.absolute().name}.{NAME}")


def is_alive(pid: int) -> bool:
    """Whether a process of this machine exists. One that has ended and that nobody has asked about does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user, or a system without /proc
        return True
    return stat.rpartition(")")[2].split()[:1] != ["Z"]


def _numbering() -> str:
    """Containers may share a host name and not the numbers of processes."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def shown_metrics(metrics: Mapping[str, float], names: Mapping[str, str]) -> str:
    """`loss 2.31, margin 0.52`: the metrics that are there, by what `names` calls them."""
    return ", ".join(f"{label} {metrics[name]:.4g}" for name, label in names.items() if name in metrics)
