"""What a running conversion says: bars, and a status beside the output; the output of libraries is hidden."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

from tqdm import tqdm

from nemo_longpo.errors import InputError
from nemo_longpo.live_status import StatusFile

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
"""Threads are enough: reading, copying and writing a tensor let other threads run."""

VERBOSE = "LONGPO_VERBOSE"
"""Environment variable; 1 lets libraries print."""

_MEGABYTE = 1_000_000
_OUT, _ERR = 1, 2
Item = TypeVar("Item")


class Parts(StatusFile):
    """The status of a conversion, beside its output: which part is at work, and how many megabytes of it are done."""

    def __init__(self, output: Path, what: str):
        super().__init__(output, what, whole=True, unit="megabyte")

    def start(self, doing: str, size: int = 0) -> Callable[[int], None]:
        """Begin a part of `size` bytes; 0 if nobody counts them. Returns what is told how many more are done."""
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self.update(done=done / _MEGABYTE)

        self.update(doing=doing, done=0, total=size / _MEGABYTE or None, now=True)
        self.begin()
        return advance


def work_through(
    items: Iterable[Item],
    work: Callable[[Item], int],
    *,
    title: str,
    total: int,
    workers: int,
    unit: str = "B",
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Call `work` on every item, `workers` at a time.

    `work` returns how much of `total` it has done, in bytes or another `unit`; `advance` is told too. After an error or
    Ctrl-C no further item is begun, and those in work are waited for.
    """
    with (
        tqdm(desc=title, total=total, unit=unit, unit_scale=unit == "B") as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for size in pool.map(work, items):
            bar.update(size)
            advance(size)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide what libraries write to standard output and error within the block.

    It is shown if the block fails with another error than InputError.
    """
    if os.environ.get(VERBOSE, "0") != "0":
        yield
        return
    _flush()
    out, err = os.dup(_OUT), os.dup(_ERR)
    with TemporaryFile() as held:
        os.dup2(held.fileno(), _OUT)
        os.dup2(held.fileno(), _ERR)
        try:
            yield
        except InputError:
            raise
        except Exception:
            _flush()
            held.seek(0)
            os.write(err, held.read())
            raise
        finally:
            _flush()
            os.dup2(out, _OUT)
            os.dup2(err, _ERR)
            os.close(out)
            os.close(err)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
