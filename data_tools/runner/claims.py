"""Divide parts among processes: each makes its own share first, then parts of others that it can claim.

A claim is a small file that its owner keeps touching. It only saves work: parts appear whole by a rename and do not
depend on the process that makes them, so two owners of one part waste time and harm nothing.
"""

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nemo_longpo.errors import InputError
from nemo_longpo.live_status import is_alive

from ..settings import WorkShare

_HOST = socket.gethostname()
# (rank, number of processes): torchrun and Kubeflow, Slurm, Open MPI, other MPIs, a Kubernetes indexed job.
_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("JOB_COMPLETION_INDEX", None),
)


class Claims:
    """The claims of this process in one directory; a context manager that keeps them fresh and drops them at the end.

    A claim is void if its owner is a dead process of this machine, or has not touched it for `lease_seconds`. Time is
    taken from the file system's clock, which all machines share.
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
        """Claim `name`, unless another living process holds it; return whether it was claimed."""
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
        return age > self._lease_seconds or (len(owner) == 2 and owner[0] == _HOST and not is_alive(int(owner[1])))

    def _beat(self) -> None:
        while not self._stopped.wait(self._lease_seconds / 6):
            with self._lock:
                for path in self._held:
                    with suppress(FileNotFoundError):  # taken over and dropped by another process
                        os.utime(path)


def remove_claims(directory: Path) -> None:
    """Remove the files that killed processes left behind."""
    for path in directory.glob(".claim-*"):
        path.unlink(missing_ok=True)


def resolve_share(share: WorkShare, environment: Mapping[str, str] = os.environ) -> WorkShare:
    """Return the share, with rank and world size from the environment if it asks for them.

    A Kubernetes indexed job does not give its size, so `world_size` stays as given. Raises InputError if no process
    manager has set its variables, or the rank is not below the world size.
    """
    if share.rank_from_environment:
        rank_name, size_name = next((pair for pair in _VARIABLES if pair[0] in environment), (None, None))
        if rank_name is None:
            names = ", ".join(name for name, _ in _VARIABLES)
            raise InputError(f"rank_from_environment finds none of {names}; give rank and world_size instead")
        size = share.world_size if size_name is None else _number(environment, size_name)
        share = replace(share, rank=_number(environment, rank_name), world_size=size)
    if share.rank >= share.world_size:
        raise InputError(f"rank {share.rank} must be below world_size {share.world_size}")
    return share


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise InputError(f"the environment variable {name} must be a number, not {text!r}")
    return int(text)
