"""Runs whose files are damaged, or whose disk is full, for a worker of `WorkerPool`."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.jobs.nemo_jobs import finetune

from nemo_longpo.errors import InputError


def outcome(overrides: dict[str, Any], largest_file: int | None = None) -> str | None:
    """Return the message of a run with checkpoints that fails; None if it succeeds.

    Where no file may have more than `largest_file` bytes, writing fails as it does on a full disk.
    """
    try:
        with _file_limit(largest_file):
            finetune(overrides, checkpoints=True)
    except InputError as error:
        return str(error)
    return None


@contextmanager
def _file_limit(size: int | None) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
