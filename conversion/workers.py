"""The one loop that goes over a model's tensors: a few threads, one progress bar in bytes."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
"""Threads are enough: reading, copying and writing a tensor let other threads run."""

Item = TypeVar("Item")


def work_through(items: Iterable[Item], work: Callable[[Item], int], *, title: str, total: int, workers: int) -> None:
    """Call `work` on every item, `workers` at a time; it returns the bytes that it has dealt with, of `total`.

    After an error or Ctrl-C no further item is begun, and those in work are waited for.
    """
    with (
        tqdm(desc=title, total=total, unit="B", unit_scale=True) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for size in pool.map(work, items):
            bar.update(size)
