"""Output directories that appear complete or not at all.

The work is done in a hidden directory beside the output, `.NAME.partial-HOST-PID`, and takes the output's name once it
is on the disk. Its process holds a lock on that directory, which the system releases when the process ends, however it
ends: so the next run for the same output can tell, and remove, what a killed run has left.
"""

import errno
import fcntl
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from types import FrameType

from nemo_longpo.errors import InputError, explain_full_disk
from nemo_longpo.terminal import note

MODEL_MARKS = ("config.json", "context")
"""One of these is in every model directory: Hugging Face's, NeMo's."""


def require_free(output: Path, *, overwrite: bool) -> None:
    """Refuse an output path that is taken or cannot be, before any work. `overwrite` allows replacing a model."""
    above = _existing_parent(output)
    if not above.is_dir():
        raise InputError(f"{above} is not a directory; choose another --output")
    if output.is_dir() and overwrite:
        if any(output.iterdir()) and not any((output / mark).exists() for mark in MODEL_MARKS):
            raise InputError(f"{output} is no model, and --overwrite replaces nothing else; choose another --output")
        return
    if output.exists() or output.is_symlink():
        advice = "pass --overwrite to replace it, or choose another --output" if output.is_dir() else "choose another"
        raise InputError(f"{output} exists already; {advice}")


def require_apart(output: Path, *inputs: Path) -> None:
    """Refuse an output that is an input, or lies in one, or holds one: replacing it would take the input along."""
    place = output.resolve()
    for given in inputs:
        source = given.resolve()
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise InputError(f"the output {output} and the input {given} lie in one another; choose another --output")


def bytes_of(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


@contextmanager
def new_directory(output: Path, *, overwrite: bool, size: int) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `output` once the block has ended well.

    On any failure, Ctrl-C and SIGTERM included, it goes, and an existing output stays as it was. Refuses, before
    anything is written, a disk without room for `size` bytes.
    """
    output = output.resolve()
    _clear_leftovers(output)
    _require_room(output, size)
    output.parent.mkdir(parents=True, exist_ok=True)
    workplace = output.parent / f"{_prefix(output)}{socket.gethostname()}-{os.getpid()}"
    workplace.mkdir()
    new, old = workplace / "new", workplace / "old"
    with ExitStack() as stack, _stopped_by_sigterm(), explain_full_disk(output, "nothing of it was kept"):
        # Some network file systems have no locks. The other lock, which allows to remove this, is not to be had either.
        with suppress(OSError):
            stack.enter_context(_locked(workplace, fcntl.LOCK_SH))
        try:
            new.mkdir()
            yield new
            _flush(new)
            require_free(output, overwrite=overwrite)
            if output.exists():
                output.rename(old)
            new.rename(output)
        finally:
            _give_back(old, output)
            shutil.rmtree(workplace, ignore_errors=True)


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _require_room(output: Path, size: int) -> None:
    above = _existing_parent(output)
    free = shutil.disk_usage(above).free
    if free < size:
        raise InputError(
            f"{output} takes {size / 1e9:.3g} GB and the disk of {above} has {free / 1e9:.3g} GB left; make room, or "
            "choose another --output"
        )


def _clear_leftovers(output: Path) -> None:
    """Remove what runs for this output left when they were killed. One that still runs here is an InputError."""
    for left in sorted(output.parent.glob(f"{escape(_prefix(output))}*")):
        host, _, process = left.name.removeprefix(_prefix(output)).rpartition("-")
        try:
            if host != socket.gethostname():
                raise OSError(f"a lock of {host} may not show here")
            with _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _give_back(left / "old", output)
                shutil.rmtree(left)
            note(f"longpo: removed {left}, which a run that was killed had left")
        except BlockingIOError:
            raise InputError(f"{output} is being written by process {process}; wait for it to end") from None
        except OSError as error:
            note(f"longpo: left {left} alone ({error}); remove it if no run on {host} writes there")


def _give_back(old: Path, output: Path) -> None:
    """Undo the first half of a replacement that lacks the second."""
    if old.exists() and not output.exists():
        old.rename(output)


@contextmanager
def _locked(directory: Path, operation: int) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """What batch systems send when time is up ends the block like an exception, so that it cleans up."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may say what a signal does.
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _flush(directory: Path) -> None:
    """To the disk, so that a machine that stops does not leave an output with empty files."""
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Some network file systems cannot flush a directory.
                raise
        finally:
            os.close(descriptor)
