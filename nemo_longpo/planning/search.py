"""Search all placements of a job on given GPUs: which fit, how fast each would be, and why the rest is refused."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from nemo_longpo.costs.devices import GIB
from nemo_longpo.placement import Placement, Recompute

from .job import Job
from .memory import Memory, estimate_memory
from .speed import Machine, Speed, estimate_speed

TILE_TOKENS = 16384
"""Rows of a feed-forward tile: its products still keep a GPU's matrix units busy."""

SAME_SPEED = 0.01
"""Of the time of a step: what is gained by less does not pay for another setting."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user fixes; None leaves it to the search.

    `mlp_tile_tokens` of 0 wants no tiles. `margin` is the share of the GPU's memory left free, for fragmentation and
    for what no formula here counts. `host_memory` is that of a node in bytes, by default a DGX H100's 2 TB.
    """

    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    recompute: Recompute | None = None
    offload_optimizer: bool | None = None
    offload_layer_inputs: bool | None = None
    mlp_tile_tokens: int | None = None
    grad_reduce_in_fp32: bool = True
    margin: float = 0.1
    host_memory: float = 2e12


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
        fitting: list[Candidate] = []
        tried: list[tuple[Placement, Memory]] = []
        for ladder in _ladders(job, placement, wishes):
            for way in ladder:
                tried.append((way, memory := estimate_memory(job, way)))
                if memory.total <= room and memory.host * way.devices <= wishes.host_memory:
                    fitting.append(Candidate(way, memory, estimate_speed(job, way, machine)))
                    break
        if fitting:
            candidates.append(_best(fitting))
        else:
            refusals.append(_refusal(tried, room, wishes.host_memory))
    candidates.sort(key=_preference)
    refusals.sort(key=lambda refusal: float("inf") if refusal.missing is None else refusal.missing)
    return Search(candidates, refusals)


def _refusal(tried: list[tuple[Placement, Memory]], room: float, host_memory: float) -> Refusal:
    """Say what is missing where least is: on the GPU or, if it has room, in the node's memory."""

    def missing(way: tuple[Placement, Memory]) -> tuple[float, float]:
        placement, memory = way
        return max(0.0, memory.total - room), memory.host * placement.devices - host_memory

    placement, memory = closest = min(tried, key=missing)
    too_many, of_node = missing(closest)
    needs, has, where = memory.total, room, ""
    if not too_many:
        too_many, needs, has, where = of_node, of_node + host_memory, host_memory, " of the node's memory"
    reason = f"needs {needs / GIB:.1f} GiB of {has / GIB:.1f}{where}, {too_many / GIB:.1f} too many, with " + ", ".join(
        [f"recompute {placement.recompute}", *sparing(placement)]
    )
    return Refusal(placement, reason, too_many)


def sparing(placement: Placement) -> list[str]:
    """Name what saves the GPU's memory besides recompute."""
    tile = placement.mlp_tile_tokens
    return [
        *(["layer inputs in host memory"] if placement.offload_layer_inputs else []),
        *([f"feed-forward tiles of {tile:,}"] if tile else []),
        *(["optimizer on the CPU"] if placement.offload_optimizer else []),
    ]


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


def _ladders(job: Job, placement: Placement, wishes: Wishes) -> Iterator[Iterator[Placement]]:
    """Yield all ways to save memory; within one ladder each step takes less memory and more time than the one before.

    Where the user leaves it open, `mlp` recompute is not combined with tiles, which do the same with less memory.
    """
    layers = job.stage_layers(placement)
    recomputes: tuple[Recompute, ...] = ("none", "mlp", "full") if wishes.recompute is None else (wishes.recompute,)
    tiles = (0, TILE_TOKENS) if wishes.mlp_tile_tokens is None else (wishes.mlp_tile_tokens,)
    for offload, inputs, tile, recompute in product(
        _either(wishes.offload_optimizer), _either(wishes.offload_layer_inputs), tiles, recomputes
    ):
        if (inputs and recompute != "full") or (tile and recompute == "mlp" and wishes.recompute is None):
            continue
        base = replace(placement, offload_optimizer=offload, offload_layer_inputs=inputs, mlp_tile_tokens=tile or None)
        # All layers is Megatron's method "uniform", for which no number is given.
        counts = (*range(1, layers), None) if recompute == "full" else (None,)
        yield (base.recomputing(recompute, again) for again in counts)


def _either(wish: bool | None) -> tuple[bool, ...]:
    return (False, True) if wish is None else (wish,)


def _best(fitting: list[Candidate]) -> Candidate:
    """Return the fastest, or one that is as fast with fewer settings."""
    fastest = min(fitting, key=_preference)
    same = [
        candidate
        for candidate in fitting
        if candidate.placement.offload_optimizer == fastest.placement.offload_optimizer
        and candidate.speed.seconds <= fastest.speed.seconds * (1 + SAME_SPEED)
    ]
    return min(same, key=lambda candidate: (len(sparing(candidate.placement)), *_preference(candidate)))


def _preference(candidate: Candidate) -> tuple[bool, float, float]:
    """Sort by speed, an optimizer on the CPU last: its time depends on the host."""
    return candidate.placement.offload_optimizer, candidate.speed.seconds, candidate.memory.total
