"""Records of a run's checkpoints, written while training goes on."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .integrity import write_record


class _Stopped(Exception):
    """The record is not wanted any more."""


class Recorder:
    """Writes the records of the checkpoints it is given, one after the other, in a thread of its own.

    Reading and hashing let other threads run. A checkpoint that is to be removed must be forgotten first: a file that
    appears in a directory while it is being removed would stay, and the directory with it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-record")
        self._work: dict[Path, tuple[Future[None], threading.Event]] = {}

    def record(self, checkpoint: Path) -> None:
        """Begin the record of a complete checkpoint."""
        stop = threading.Event()

        def continue_unless_stopped(size: int) -> None:
            if stop.is_set():
                raise _Stopped

        self._work[checkpoint] = self._pool.submit(write_record, checkpoint, continue_unless_stopped), stop

    def forget(self, checkpoint: Path) -> None:
        """Stop the record; return when nothing is read or written in the checkpoint any more."""
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
        """Drop the records that are finished; with `wait`, finish and drop all of them.

        Raises InputError if one could not be written because the disk is full.
        """
        for checkpoint, (future, _) in [*self._work.items()]:
            if wait or future.done():
                del self._work[checkpoint]
                future.result()
