"""Records of a run's checkpoints, written while training goes on."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .integrity import write_record


class _Stopped(Exception):
    """Nobody wants this record any more."""


class Recorder:
    """Writes the record of each checkpoint it is given in one thread of its own, one after the other.

    Reading and hashing let other threads run. A checkpoint that is to be removed must be forgotten first: a file that
    appears in a directory while it is being removed would stay, and the directory with it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-record")
        self._work: dict[Path, tuple[Future[None], threading.Event]] = {}

    def record(self, checkpoint: Path) -> None:
        """Begin with a checkpoint that is complete."""
        stop = threading.Event()

        def go_on(size: int) -> None:
            if stop.is_set():
                raise _Stopped

        self._work[checkpoint] = self._pool.submit(write_record, checkpoint, go_on), stop

    def forget(self, checkpoint: Path) -> None:
        """Returns when nothing is read or written in the checkpoint any more."""
        if checkpoint in self._work:
            future, stop = self._work.pop(checkpoint)
            stop.set()
            if not future.cancel():
                future.exception()  # waits

    def forget_all(self) -> None:
        for checkpoint in [*self._work]:
            self.forget(checkpoint)

    @property
    def unfinished(self) -> list[Path]:
        return [checkpoint for checkpoint, (future, _) in self._work.items() if not future.done()]

    def collect(self, *, wait: bool) -> None:
        """Let go of the records that are finished, of all of them with `wait`.

        Raises:
            InputError: one could not be written, because the disk is full.
        """
        for checkpoint, (future, _) in [*self._work.items()]:
            if wait or future.done():
                del self._work[checkpoint]
                future.result()
