"""Search all placements of a job on given GPUs: which fit, how fast each would be, and why the rest is refused."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nemo_longpo.costs.devices import GIB
from nemo_longpo.placement import Placement, Recompute

from .job import Job
from .memory import Memory, estimate_memory
from .speed import Machine, Speed, estimate_speed


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user fixes; None leaves it to the search.

    `margin` is the share of the GPU's memory left free, for fragmentation and for what no formula here counts.
    """

    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    recompute: Recompute | None = None
    offload_optimizer: bool | None = None
    grad_reduce_in_fp32: bool = True
    margin: float = 0.1


@dataclass(frozen=True)
class Candidate:
    """A placement that fits, with its costs."""

    placement: Placement
    memory: Memory
    speed: Speed


@dataclass(frozen=True)
class Refusal:
    """A placement that is impossible; `missing` bytes where only memory is in the way."""

    placement: Placement
    reason: str
    missing: float | None = None


@dataclass(frozen=True)
class Search:
    """`candidates`, the fastest first; `refusals`, those that miss least memory first."""

    candidates: list[Candidate]
    refusals: list[Refusal]


def search(job: Job, machine: Machine, wishes: Wishes) -> Search:
    """Try every (tp, pp, cp, dp) whose product is the number of GPUs; of each, the fastest way that fits."""
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    room = machine.gpu.memory * (1 - wishes.margin)
    for placement in _placements(machine, wishes):
        reason = impossible(job, placement)
        if reason:
            refusals.append(Refusal(placement, reason))
            continue
        tried = [
            Candidate(variant, estimate_memory(job, variant), estimate_speed(job, variant, machine))
            for variant in _variants(job, placement, wishes)
        ]
        fitting = [candidate for candidate in tried if candidate.memory.total <= room]
        if fitting:
            candidates.append(min(fitting, key=_preference))
            continue
        least = min(tried, key=lambda candidate: candidate.memory.total)
        total, missing, on_cpu = least.memory.total, least.memory.total - room, least.placement.offload_optimizer
        reason = (
            f"needs {total / GIB:.1f} GiB of {room / GIB:.1f}, {missing / GIB:.1f} too many, with recompute "
            f"{least.placement.recompute}{' and the optimizer on the CPU' if on_cpu else ''}"
        )
        refusals.append(Refusal(least.placement, reason, missing))
    candidates.sort(key=_preference)
    refusals.sort(key=lambda refusal: float("inf") if refusal.missing is None else refusal.missing)
    return Search(candidates, refusals)


def impossible(job: Job, placement: Placement) -> str | None:
    """Say why this model, batch or machine cannot be split like this, whatever the memory; None if it can."""
    shape, tp = job.shape, placement.tp
    for count, name, size, axis in (
        (shape.heads, "attention heads", tp, "tp"),
        (shape.kv_heads, "key/value heads", tp, "tp"),
        (shape.ffn, "feed-forward columns", tp, "tp"),
        (shape.layers, "layers", placement.pp, "pp"),
        (job.pairs, "pairs of a batch", placement.dp, "dp"),
    ):
        if count % size:
            return f"{count} {name} do not divide by {axis} {size}"
    if tp > placement.gpus_per_node:
        return f"tp {tp} reaches beyond a node of {placement.gpus_per_node} GPUs, whose links are too slow for it"
    if job.trunk < 2 * placement.cp:
        return f"a trunk of {job.trunk} tokens does not fill 2 x cp {placement.cp} chunks"
    return None


def _placements(machine: Machine, wishes: Wishes) -> Iterator[Placement]:
    def sizes(gpus: int, wish: int | None) -> list[int]:
        return [size for size in range(1, gpus + 1) if gpus % size == 0 and wish in (None, size)]

    for tp in sizes(machine.gpus, wishes.tp):
        for pp in sizes(machine.gpus // tp, wishes.pp):
            for cp in sizes(machine.gpus // tp // pp, wishes.cp):
                yield Placement(
                    tp=tp,
                    pp=pp,
                    cp=cp,
                    dp=machine.gpus // tp // pp // cp,
                    gpus_per_node=machine.gpus_per_node,
                    grad_reduce_in_fp32=wishes.grad_reduce_in_fp32,
                )


def _variants(job: Job, placement: Placement, wishes: Wishes) -> Iterator[Placement]:
    """Yield all ways to save memory, from nothing to everything; whole layers one by one."""
    layers = job.stage_layers(placement)
    recomputes: tuple[Recompute, ...] = ("none", "mlp", "full") if wishes.recompute is None else (wishes.recompute,)
    for offload in (False, True) if wishes.offload_optimizer is None else (wishes.offload_optimizer,):
        for recompute in recomputes:
            # All layers is Megatron's method "uniform", for which no number is given.
            for again in (*range(1, layers), None) if recompute == "full" else (None,):
                yield replace(placement.recomputing(recompute, again), offload_optimizer=offload)


def _preference(candidate: Candidate) -> tuple[bool, float, float]:
    """Sort by speed, an optimizer on the CPU last: its time depends on the host."""
    return candidate.placement.offload_optimizer, candidate.speed.seconds, candidate.memory.total
