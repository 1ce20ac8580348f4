"""This process's place in Megatron's process groups, and functions that all ranks call together.

No other file reads Megatron's global parallel state.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from nemo_longpo.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Process groups of the job, and this rank's pipeline stage. `dp_group` excludes context parallelism."""

    tp_size: int
    cp_group: dist.ProcessGroup
    dp_group: dist.ProcessGroup
    pp_group: dist.ProcessGroup
    pp_last_rank: int
    is_first_stage: bool
    is_last_stage: bool


def current_topology(vp_stage: int | None = None) -> Topology:
    """Return this rank's topology; `vp_stage` is the virtual pipeline stage, if any."""
    stage = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    return Topology(
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        cp_group=parallel_state.get_context_parallel_group(),
        dp_group=parallel_state.get_data_parallel_group(),
        pp_group=parallel_state.get_pipeline_model_parallel_group(),
        pp_last_rank=parallel_state.get_pipeline_model_parallel_last_rank(),
        is_first_stage=parallel_state.is_pipeline_first_stage(**stage),
        is_last_stage=parallel_state.is_pipeline_last_stage(**stage),
    )


def become_single_process() -> None:
    """Make this process a job of its own, for a model that is not trained; do nothing if it is in a job already."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()


def hierarchical_cp_groups(sizes: Sequence[int]) -> list[dist.ProcessGroup]:
    """Return this rank's part of its context-parallel group at each level: `sizes[0]` neighbours, then strides of that.

    All ranks of the job must call it: each group is made by all of them, in the same order.
    """
    ranks_of_all: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks_of_all, dist.get_process_group_ranks(parallel_state.get_context_parallel_group()))
    mine: list[dist.ProcessGroup] = []
    for ranks in sorted({tuple(ranks) for ranks in ranks_of_all}):
        groups, _ = parallel_state.create_hierarchical_groups(
            dist.get_rank(), ranks, list(sizes), group_desc="CONTEXT_PARALLEL_GROUP"
        )
        mine += groups
    return mine


_LONGEST_WAIT = timedelta(days=1)  # for ranks that wait while others read; the default group times out after minutes


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

    Raises InputError on all ranks, with the message of the first failing rank, if any `check` raises one.
    """
    problem = None
    if here:
        try:
            check()
        except InputError as error:
            problem = str(error)
    raise_first(gather_from_all(problem))


def raise_first(problems: Iterable[str | None]) -> None:
    """Raises InputError with the first problem if there is one."""
    for problem in problems:
        if problem is not None:
            raise InputError(problem)
