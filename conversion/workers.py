"""The one loop that goes over a model's tensors: a few threads, one progress bar in bytes."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
"""Threads are enough: reading, copying and writing a tensor let other threads run."""

Item = TypeVar("Item")


def work_through(
    items: Iterable[Item], work: Callable[[Item], int], *, title: str, total: int, workers: int, unit: str = "B"
) -> None:
    """Call `work` on every item, `workers` at a time; it returns how much it has dealt with, of `total`: bytes,
    or another `unit`.

    After an error or Ctrl-C no further item is begun, and those in work are waited for.
    """
    with (
        tqdm(desc=title, total=total, unit=unit, unit_scale=unit == "B") as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for size in pool.map(work, items):
            bar.update(size)
