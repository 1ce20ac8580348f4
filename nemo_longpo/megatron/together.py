"""What one rank finds out, all ranks hear: work that is done once, and refusals that stop the whole job."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from nemo_longpo.errors import InputError

_LONGEST_WAIT = timedelta(days=1)  # for ranks that wait while others read; the default group gives up after minutes


def gather_from_all(value: Any) -> list[Any]:
    """Every rank's value (small, pickled) on every rank, in the order of ranks. All ranks of the job call it."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    group = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    dist.all_gather_object(values, value, group=group)
    dist.destroy_process_group(group)
    return values


def raise_first(problems: list[str | None]) -> None:
    """Raises InputError with the first problem, if there is any: the same sentence on all ranks that have this list."""
    for problem in problems:
        if problem is not None:
            raise InputError(problem)
