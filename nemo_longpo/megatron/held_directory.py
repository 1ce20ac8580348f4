"""A run's directory: one run at a time writes into it, and every machine of the job sees it."""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nemo_longpo.atomic import explain_full_disk, owned_file
from nemo_longpo.errors import InputError

from . import topology

LOCK = "lock"
"""In the directory; names the machine and the process that write there, or did last."""

_PATIENCE = 90.0  # seconds until a network file system shows all machines what one of them has written


@contextmanager
def held(directory: Path, *, first: bool) -> Iterator[None]:
    """Keep other runs out of a directory that the job shares. All ranks must call this; `first` is one of them.

    Two runs would write the same checkpoints and remove each other's; a machine that sees another directory would keep
    its parts of every checkpoint to itself, and none could be loaded. The lock ends with its process, however that
    ends, and processes that it has started do not have it. Where a file system has no locks, none is taken.

    Raises InputError on all ranks if another run holds the directory, or a rank does not see it.
    """
    (mark, *_) = topology.gather_from_all(f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}")
    with ExitStack() as stack:
        topology.raise_on_all(lambda: stack.enter_context(_own(directory, mark)), here=first)
        # Not on the first rank: it would give up its lock with any descriptor of the file that it closes.
        topology.raise_on_all(lambda: _require_sight(directory, mark), here=not first)
        yield


def _own(directory: Path, mark: str) -> ExitStack:
    """Return what holds the lock until it is closed."""
    path = directory / LOCK
    with explain_full_disk(path, "nothing is lost"), ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(owned_file(path, mark))
        except BlockingIOError as error:
            host, process, *_ = [*str(error).split(), "?", "?"]
            raise InputError(
                f"another run writes into {directory.parent} (process {process} on {host}); wait for its end, stop it, "
                f"or give another log.log_dir. If that machine is lost and its lock stays, remove {path}."
            ) from None
        except PermissionError as error:
            raise InputError(
                f"{error.filename} cannot be written: {error.strerror}; give another log.log_dir, or its owner's rights"
            ) from error
        return stack.pop_all()


def _require_sight(directory: Path, mark: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not _is_seen(directory / LOCK, mark):
        if time.monotonic() > deadline:
            raise InputError(
                f"{directory.parent} on {socket.gethostname()} is not the directory of that name on "
                f"{mark.split()[0]}, where the first rank is: its parts of checkpoints would be missing there; give a "
                "log.log_dir that all machines of the job share."
            )
        time.sleep(min(1.0, _PATIENCE / 10))


def _is_seen(path: Path, mark: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == mark
    except OSError:
        return False
