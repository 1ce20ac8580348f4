"""What `longpo plan` says, for people and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nemo_longpo.costs.devices import GIB
from nemo_longpo.costs.flops import forward_flops, layers_flops

from .job import Job
from .memory import Memory
from .overrides import overrides
from .search import Candidate, Refusal, Search, Wishes
from .speed import Machine

PARTS = {
    "weights": "this GPU's share of the weights",
    "gradients": "one per weight, summed over the batch",
    "optimizer": "fp32 weights and Adam's two averages, over dp x cp",
    "activations": "kept for the backward, all layers",
    "layer": "one layer's recompute and backward, or its ring and branches",
    "logprobs": "final states, chunks of logits, gradient of the output layer",
    "inputs": "tokens, labels, masks, rotary angles",
    "communication": "CUDA and NCCL, estimated",
}
SHOWN = 5
"""Alternatives, and setups that do not fit, that are printed; --json has all."""


def as_json(job: Job, machine: Machine, wishes: Wishes, found: Search) -> dict[str, Any]:
    """Bytes, FLOPs and seconds. `recommended` is null when nothing fits."""
    candidates = [_candidate(job, machine, candidate) for candidate in found.candidates]
    return {
        "job": asdict(job),
        "machine": asdict(machine) | {"margin": wishes.margin},
        "flops_per_pair": {"forward": forward_flops(*_lengths(job), job.layout), "ratio": layout_ratio(job)},
        "recommended": candidates[0] if candidates else None,
        "alternatives": candidates[1:],
        "refused": [_refusal(refusal) for refusal in found.refusals],
    }


def layout_ratio(job: Job) -> float:
    """How much less the layers compute with a shared prefix than with two full sequences."""
    return layers_flops(*_lengths(job), "concatenated") / layers_flops(*_lengths(job), "shared_prefix")


def nothing_fits(found: Search) -> str:
    """One sentence: that nothing is possible, and what comes closest."""
    closest = found.refusals[0] if found.refusals else None
    if closest is None:
        return "the sizes given do not divide the number of GPUs; leave --tp, --pp or --cp out"
    if closest.missing is None:
        return f"nothing is possible; for example {_sizes(closest)}: {closest.reason}"
    return (
        f"nothing fits; the closest is {_sizes(closest)}, which {closest.reason}; take more GPUs, larger ones "
        "(--gpu-memory), or a shorter --length"
    )


def render(job: Job, machine: Machine, wishes: Wishes, found: Search) -> str:
    """The report for a terminal; `found` has a candidate."""
    best = found.candidates[0]
    return "\n".join(
        [
            *_task(job, machine, wishes),
            "",
            f"recommended: {best.setup.describe()}",
            "",
            *_memory_table(best.memory, machine, wishes),
            "",
            *_costs(job, best),
            "",
            "nemo llm finetune --factory NAME \\",
            " \\\n".join(f"    {argument}" for argument in overrides(job, best.setup, machine)),
            *_others(found),
        ]
    )


def _task(job: Job, machine: Machine, wishes: Wishes) -> Iterator[str]:
    gpu, billions = machine.gpu, job.shape.parameters / 1e9
    yield (
        f"{billions:.2f} B parameters; {job.pairs} pairs per step, each a trunk of {job.trunk:,} tokens and branches "
        f"of {job.chosen:,} and {job.rejected:,}, {job.layout}"
    )
    yield (
        f"{machine.gpus} x {gpu.name} of {gpu.memory / GIB:.1f} GiB, {wishes.margin:.0%} of it left free; computing at "
        f"{machine.utilisation:.0%} of {gpu.peak_flops / 1e12:.0f} TFLOP/s"
    )


def _memory_table(memory: Memory, machine: Machine, wishes: Wishes) -> Iterator[str]:
    yield "GiB per GPU"
    for name, meaning in PARTS.items():
        yield f"  {name:<14}{getattr(memory, name) / GIB:6.1f}  {meaning}"
    usable, total = machine.gpu.memory * (1 - wishes.margin) / GIB, memory.total / GIB
    yield f"  {'total':<14}{total:6.1f}  of {usable:.1f} usable; of `layer` and `logprobs` the larger counts"
    if memory.host:
        yield f"  {'host':<14}{memory.host / GIB:6.1f}  of the node's memory, for each of its GPUs"


def _costs(job: Job, best: Candidate) -> Iterator[str]:
    speed, forward = best.speed, forward_flops(*_lengths(job), job.layout)
    yield f"FLOPs     forward of one pair {forward:.3g}; a shared prefix costs {layout_ratio(job):.2f}x less"
    yield f"          step {speed.model_flops:.3g} (three forwards), {speed.executed_flops:.3g} with recompute"
    yield (
        f"expected  {speed.seconds:,.0f} s per step: computing {speed.compute:,.1f}, exposed communication "
        f"{speed.communication:,.1f}, pipeline idle {speed.idle:,.1f}, optimizer on the CPU {speed.optimizer:,.1f}"
    )
    yield (
        f"          {speed.tokens_per_second:,.0f} tokens/s, {speed.tokens_per_second / speed.gpus:,.0f} per GPU; "
        f"model FLOP utilisation {speed.mfu:.1%}"
    )


def _others(found: Search) -> Iterator[str]:
    if found.candidates[1:]:
        yield "\nalso possible"
    for candidate in found.candidates[1 : SHOWN + 1]:
        speed, total = candidate.speed, candidate.memory.total / GIB
        yield f"  {candidate.setup.describe()}: {total:.1f} GiB, {speed.tokens_per_second:,.0f} tokens/s"
    if found.refusals:
        yield f"\nrefused, {len(found.refusals)} in all"
    for refusal in [refusal for refusal in found.refusals if refusal.missing is not None][:SHOWN]:
        yield f"  {_sizes(refusal)}: {refusal.reason}"
    for reason in dict.fromkeys(refusal.reason for refusal in found.refusals if refusal.missing is None):
        yield f"  {reason}"


def _sizes(refusal: Refusal) -> str:
    setup = refusal.setup
    return f"tp {setup.tp}, cp {setup.cp}, pp {setup.pp}, dp {setup.dp}"


def _lengths(job: Job) -> tuple[Any, int, int, int]:
    return job.shape, job.trunk, job.chosen, job.rejected


def _candidate(job: Job, machine: Machine, candidate: Candidate) -> dict[str, Any]:
    speed = candidate.speed
    derived = {"seconds": speed.seconds, "tokens_per_second": speed.tokens_per_second, "mfu": speed.mfu}
    return {
        "setup": asdict(candidate.setup),
        "memory": candidate.memory.as_dict(),
        "speed": asdict(speed) | derived,
        "overrides": overrides(job, candidate.setup, machine),
    }


def _refusal(refusal: Refusal) -> dict[str, Any]:
    setup = refusal.setup
    return {
        "tp": setup.tp,
        "pp": setup.pp,
        "cp": setup.cp,
        "dp": setup.dp,
        "reason": refusal.reason,
        "missing_bytes": refusal.missing,
    }
