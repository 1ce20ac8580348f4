"""Work that one rank does for all, and refusals that stop the whole job with the same sentence."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from nemo_longpo.errors import InputError

_LONGEST_WAIT = timedelta(days=1)  # for ranks that wait while others read; the default group gives up after minutes


def gather_from_all(value: Any) -> list[Any]:
    """Return every rank's value (small, pickled) in the order of ranks. All ranks of the job must call it."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    group = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    dist.all_gather_object(values, value, group=group)
    dist.destroy_process_group(group)
    return values


def raise_on_all(check: Callable[[], object], *, here: bool = True) -> None:
    """Call `check` on the ranks where `here` is true. All ranks of the job must call this function.

    Raises InputError on all ranks if any of them raised one: that of the first such rank.
    """
    problem = None
    if here:
        try:
            check()
        except InputError as error:
            problem = str(error)
    raise_first(gather_from_all(problem))


def raise_first(problems: Iterable[str | None]) -> None:
    """Raises InputError with the first problem, if there is one."""
    for problem in problems:
        if problem is not None:
            raise InputError(problem)
