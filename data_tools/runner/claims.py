"""Who is making which part, so that processes that share an output do not do the same work twice.

A claim is a small file that its owner keeps touching. It saves work and guards nothing: parts appear whole by a rename
and come out the same whoever makes them, so two owners of one part waste time and harm nothing.
"""

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

_HOST = socket.gethostname()


class Claims:
    """The claims of this process in one directory; a context manager that keeps them fresh and drops them at the end.

    A claim is void when its owner is a dead process of this machine, or has not touched it for `lease_seconds` by the
    clock of the file system, which all machines share.
    """

    def __init__(self, directory: Path, *, lease_seconds: float = 120.0):
        self._directory = directory
        self._lease_seconds = lease_seconds
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> "Claims":
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._heart.join()
        for path in list(self._held):
            self._drop(path)

    def take(self, name: str) -> bool:
        """Claim `name`, unless another living process holds it."""
        path = self._directory / f".claim-{name}"
        mine = self._directory / f".claim-{name}.{_HOST}.{os.getpid()}"
        mine.write_text(f"{_HOST} {os.getpid()}")
        try:
            os.link(mine, path)
        except FileExistsError:
            if not self._is_void(path, now=mine.stat().st_mtime):
                return False
            os.replace(mine, path)
        finally:
            mine.unlink(missing_ok=True)
        with self._lock:
            self._held.add(path)
        return True

    def release(self, name: str) -> None:
        self._drop(self._directory / f".claim-{name}")

    def _drop(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)
            path.unlink(missing_ok=True)

    def _is_void(self, path: Path, now: float) -> bool:
        try:
            age, owner = now - path.stat().st_mtime, path.read_text().split()
        except FileNotFoundError:
            return True
        return age > self._lease_seconds or (len(owner) == 2 and owner[0] == _HOST and not _is_alive(int(owner[1])))

    def _beat(self) -> None:
        while not self._stopped.wait(self._lease_seconds / 6):
            with self._lock:
                for path in self._held:
                    with suppress(FileNotFoundError):  # taken over and dropped by another process
                        os.utime(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_claims(directory: Path) -> None:
    """Clear what killed processes left behind, once all parts are there."""
    for path in directory.glob(".claim-*"):
        path.unlink(missing_ok=True)
