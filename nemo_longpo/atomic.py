"""Write files and directories that appear whole or not at all, whatever stops their process.

The work is done in a hidden directory beside the output, `.NAME.partial-HOST-PID`, and takes the output's name once it
is on the disk. Its process holds a lock on that directory. The system releases the lock when the process ends, however
it ends, so the next run for the same output can tell what a killed run has left, and removes it.
"""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from types import FrameType

from nemo_longpo.errors import InputError
from nemo_longpo.terminal import note

NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not become that large here",
}
"""What the operating system's codes for "no room" mean."""

NO_ACCESS = {
    errno.EACCES: "you do not have the right to it",
    errno.EPERM: "the system does not permit it",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EEXIST: "a file or a broken link of this name is there",
    errno.ENAMETOOLONG: "the name is too long",
}
"""What the operating system's codes for a place that cannot be used mean."""


def unusable_place(error: OSError) -> str | None:
    """Return in one sentence which file or directory cannot be used, and why; None if the place is not at fault."""
    if error.errno in NO_ROOM:
        return f"{error.filename or 'a file'} cannot be written: {NO_ROOM[error.errno]}; make room and run it again"
    if error.errno not in NO_ACCESS or error.filename is None:
        return None
    place = re.sub(r"(^|/)\.(.+?)\.partial-.*", r"\1\2", os.fsdecode(error.filename))
    return f"{place} cannot be used: {NO_ACCESS[error.errno]}; correct that, or give another place"


@contextmanager
def explain_full_disk(path: Path, kept: str = "finished parts are kept") -> Iterator[None]:
    """Turn the operating system's error for "no room" while writing `path` into an InputError that ends with `kept`.

    Other errors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(
            f"{path} cannot be written: {NO_ROOM[error.errno]}; make room and run the same command again, {kept}"
        ) from error


def write_file(
    path: Path, content: str | bytes, *, keep_existing: bool = False, kept: str = "finished parts are kept"
) -> None:
    """Put `content` at `path` by a rename; text is written as UTF-8. Its directory must exist.

    Several processes may write the same file at once. The last one wins; with `keep_existing` the first one.
    Raises InputError if the disk is full. The sentence ends with `kept`, and what was at `path` before stays.
    """
    if keep_existing and path.exists():
        return
    with explain_full_disk(path, kept):
        _clear_leftovers(path, alone=False)
        with _workplace(path) as workplace:
            new = workplace / "new"
            new.write_bytes(content.encode() if isinstance(content, str) else content)
            _flush(new)
            if not keep_existing:
                new.replace(path)
                return
            with suppress(FileExistsError):  # another process was first
                path.hardlink_to(new)


def write_for_display(path: Path, content: str) -> None:
    """Put `content` at `path` by a rename, or leave what is there, whatever goes wrong: it is only looked at.

    The disk is not waited for, so a loss of power may leave an empty file.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(content, encoding="utf-8")
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path, *, kept: str = "nothing of it was kept") -> Iterator[Path]:
    """Yield where to write a file that takes the place of `path` when the block has ended without an exception.

    For what is too large to hold in memory. On any failure, Ctrl-C and SIGTERM included, `path` stays as it was. Raises
    InputError if the disk is full; the sentence ends with `kept`.
    """
    with ExitStack() as stack:
        stack.enter_context(stopped_by_sigterm())
        stack.enter_context(explain_full_disk(path, kept))
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path, alone=False)
        new = stack.enter_context(_workplace(path)) / "new"
        yield new
        _flush(new)
        new.replace(path)


def _refuse_existing(output: Path) -> None:
    if not output.is_dir() or any(output.iterdir()):
        raise InputError(f"{output} exists already; choose another output")


@contextmanager
def new_directory(
    output: Path,
    *,
    size: int = 0,
    check: Callable[[Path], object] = _refuse_existing,
    kept: str = "nothing of it was kept",
) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `output` when the block has ended without an exception.

    On any failure, Ctrl-C and SIGTERM included, the new directory is removed and an existing output stays as it was. A
    block that removes its directory leaves the output as it was, too.

    Args:
        size: bytes that will be written, at least.
        check: called with the output before something that exists there is replaced; raises InputError to refuse. The
            default replaces nothing but an empty directory.
        kept: end of the sentence about a full disk.

    Raises:
        InputError: the disk has no room for `size` bytes (before anything is written) or gets full later; another
            process is writing the same output; `check` refuses.
    """
    output = output.resolve()
    _clear_leftovers(output, alone=True)
    above = next(parent for parent in output.parents if parent.exists())
    if (free := shutil.disk_usage(above).free) < size:
        raise InputError(
            f"{output} takes {size / 1e9:.3g} GB and the disk of {above} has {free / 1e9:.3g} GB left; make room, or "
            "choose another output"
        )
    with ExitStack() as stack:
        stack.enter_context(stopped_by_sigterm())
        stack.enter_context(explain_full_disk(output, kept))
        output.parent.mkdir(parents=True, exist_ok=True)
        workplace = stack.enter_context(_workplace(output))
        new, old = workplace / "new", workplace / "old"
        new.mkdir()
        yield new
        if not new.exists():
            return
        _flush(new)
        if output.exists():
            check(output)
            stack.callback(_give_back, old, output)
            output.rename(old)
        new.rename(output)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes of all machines have left in `directory`, when nobody writes there any more."""
    for left in directory.glob(".*.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """Yield a locked directory beside `output`; remove it at the end."""
    workplace = output.with_name(f"{_prefix(output)}{socket.gethostname()}-{os.getpid()}")
    workplace.mkdir()
    with ExitStack() as stack:
        # Some network file systems have no locks. Then nobody can take the exclusive lock either, so what is here is
        # not removed by mistake.
        with suppress(OSError):
            stack.enter_context(locked(workplace, fcntl.LOCK_SH))
        stack.callback(shutil.rmtree, workplace, ignore_errors=True)
        yield workplace


def _clear_leftovers(output: Path, *, alone: bool) -> None:
    """Remove what killed runs for this output have left on this machine.

    Raises InputError if another run is writing the output and this one should be `alone`.
    """
    here = socket.gethostname()
    for left in sorted(output.parent.glob(f"{escape(_prefix(output))}*")):
        host, _, process = left.name.removeprefix(_prefix(output)).rpartition("-")
        try:
            if host != here:
                raise OSError(f"a lock of {host} may not show here")
            with locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if not any(left.iterdir()):  # its process is about to lock it
                    continue
                _give_back(left / "old", output)
                shutil.rmtree(left)
            if alone:
                note(f"longpo: removed {left}, which a run that was killed had left")
        except BlockingIOError:
            if alone:
                raise InputError(f"{output} is being written by process {process}; wait for it to end") from None
        except OSError as error:
            if alone:
                note(f"longpo: left {left} alone ({error}); remove it if no run on {host} writes there")


def _give_back(old: Path, output: Path) -> None:
    """Undo the first half of a replacement that lacks the second."""
    if old.exists() and not output.exists():
        old.rename(output)


@contextmanager
def locked(directory: Path, operation: int) -> Iterator[int]:
    """Hold a lock on a directory (an operation of fcntl.flock) and yield its descriptor; who inherits it holds it too.

    Raises BlockingIOError if another holds it, and another OSError if the file system has no locks.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def owned_file(path: Path, owner: str) -> Iterator[None]:
    """Hold a file that names its owner, until the block or the process ends; processes that it starts do not hold it.

    Unlike `locked` it holds on network file systems that have locks for bytes of files only; where there are none at
    all, nothing is held. Nothing else in the process may open the file meanwhile: with its closing the lock would go.
    Raises BlockingIOError, with the owner as its text, if another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(os.pread(descriptor, 1000, 0).decode(errors="replace")) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        os.fsync(descriptor)  # for other machines
        yield
    finally:
        os.close(descriptor)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """End the block like an exception at SIGTERM, which batch systems send when time is up, so that it cleans up."""

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


def _flush(path: Path) -> None:
    """Write a file, or a directory and all in it, to the disk: a machine that stops leaves no empty files there."""
    for part in (*path.rglob("*"), path):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Some network file systems cannot flush a directory.
                raise
        finally:
            os.close(descriptor)
