"""Every way to spread a job over the GPUs at hand: what fits, how fast it would be, and why the rest is refused."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nemo_longpo.costs.devices import GIB

from .job import BF16, Job, Precision, Recompute, Setup
from .memory import Memory, estimate_memory
from .speed import Machine, Speed, estimate_speed

MARGIN = 0.1
"""Share of the GPU's memory left free: fragmentation, and what no formula here counts."""


@dataclass(frozen=True)
class Wishes:
    """What the user fixes; None leaves it to the search."""

    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    recompute: Recompute | None = None
    offload_optimizer: bool | None = None
    precision: Precision = BF16
    margin: float = MARGIN


@dataclass(frozen=True)
class Candidate:
    """A setup that fits, with its costs."""

    setup: Setup
    memory: Memory
    speed: Speed


@dataclass(frozen=True)
class Refusal:
    """A way to spread the job that is impossible; `missing` bytes where only memory is in the way."""

    setup: Setup
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
    for setup in _spreads(machine.gpus, wishes):
        reason = impossible(job, setup, machine)
        if reason:
            refusals.append(Refusal(setup, reason))
            continue
        tried = [_judge(job, variant, machine) for variant in _variants(job, setup, wishes)]
        room = machine.gpu.memory * (1 - wishes.margin)
        fitting = [candidate for candidate in tried if candidate.memory.total <= room]
        if fitting:
            candidates.append(min(fitting, key=_preference))
        else:
            least = min(tried, key=lambda candidate: candidate.memory.total)
            refusals.append(_too_large(least, room))
    candidates.sort(key=_preference)
    refusals.sort(key=lambda refusal: float("inf") if refusal.missing is None else refusal.missing)
    return Search(candidates, refusals)


def impossible(job: Job, setup: Setup, machine: Machine) -> str | None:
    """Why this model, batch or machine cannot be split like this, whatever the memory; None if it can."""
    shape = job.shape
    for count, name, size, axis in (
        (shape.heads, "attention heads", setup.tp, "tp"),
        (shape.kv_heads, "key/value heads", setup.tp, "tp"),
        (shape.ffn, "feed-forward columns", setup.tp, "tp"),
        (shape.layers, "layers", setup.pp, "pp"),
        (job.pairs, "pairs of a batch", setup.dp, "dp"),
    ):
        if count % size:
            return f"{count} {name} do not divide by {axis} {size}"
    if setup.tp > machine.gpus_per_node:
        return f"tp {setup.tp} reaches beyond a node of {machine.gpus_per_node} GPUs, whose links are too slow for it"
    if job.trunk < 2 * setup.cp:
        return f"a trunk of {job.trunk} tokens does not fill 2 x cp {setup.cp} chunks"
    return None


def _spreads(gpus: int, wishes: Wishes) -> Iterator[Setup]:
    for tp in _sizes(gpus, wishes.tp):
        for pp in _sizes(gpus // tp, wishes.pp):
            for cp in _sizes(gpus // tp // pp, wishes.cp):
                yield Setup(tp, pp, cp, gpus // tp // pp // cp, precision=wishes.precision)


def _sizes(gpus: int, wish: int | None) -> list[int]:
    return [size for size in range(1, gpus + 1) if gpus % size == 0 and wish in (None, size)]


def _variants(job: Job, setup: Setup, wishes: Wishes) -> Iterator[Setup]:
    """All ways to save memory, from nothing to everything; whole layers one by one."""
    layers = setup.stage_layers(job.shape)
    for offload in (False, True) if wishes.offload_optimizer is None else (wishes.offload_optimizer,):
        for recompute in ("none", "mlp", "full") if wishes.recompute is None else (wishes.recompute,):
            for again in range(1, layers + 1) if recompute == "full" else (0,):
                yield replace(setup, recompute=recompute, recompute_layers=again, offload_optimizer=offload)


def _judge(job: Job, setup: Setup, machine: Machine) -> Candidate:
    return Candidate(setup, estimate_memory(job, setup), estimate_speed(job, setup, machine))


def _preference(candidate: Candidate) -> tuple[bool, float, float]:
    """The fastest, but an optimizer on the CPU only where nothing else fits: its time depends on the host."""
    return candidate.setup.offload_optimizer, candidate.speed.seconds, candidate.memory.total


def _too_large(least: Candidate, room: float) -> Refusal:
    missing = least.memory.total - room
    reason = (
        f"needs {least.memory.total / GIB:.1f} GiB of {room / GIB:.1f}, {missing / GIB:.1f} too many, with "
        f"recompute {least.setup.recompute}{' and the optimizer on the CPU' if least.setup.offload_optimizer else ''}"
    )
    return Refusal(least.setup, reason, missing)
