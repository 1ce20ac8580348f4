"""Print a plan for people, as JSON, as a command of either trainer, and as a recipe that `nemo llm finetune` takes."""

import json
import shlex
from dataclasses import asdict, replace
from typing import Any

from nemo_longpo import setting_names
from nemo_longpo.costs import devices, flops
from nemo_longpo.placement import Placement
from nemo_longpo.trainers import TrainerName

from .compute import Compute
from .job import Job
from .search import Candidate, Refusal, Search, Wishes, sparing
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
"""How many alternatives, and how many refusals, are printed; --json has all."""


FACTORY = "longpo"
"""The recipe without a placement of its own, which the settings of a plan complete."""


def settings(job: Job, placement: Placement) -> dict[str, Any]:
    """Return the settings of `nemo llm finetune` by path that make a recipe train `job` as planned."""
    return placement.settings() | {
        "model.pair_layout": job.layout,
        **({"model.objective.loss_type": "solopo"} if job.short_prompts else {}),
        "data.global_batch_size": job.pairs,
        "data.seq_length": job.trunk + max(job.chosen, job.rejected),
    }


def overrides(job: Job, placement: Placement, trainer: TrainerName = "nemo") -> list[str]:
    """Return `key=value` arguments behind the name of a recipe, quoted for a shell where they need it.

    Values are spelt as in Python for NeMo, whose parser understands this also where it knows no type, and in JSON for
    Megatron-Bridge; nodes and devices are torchrun's there.
    """
    planned = settings(job, placement)
    if trainer == "nemo":
        return [
            f"{path}={shlex.quote(json.dumps(value)) if isinstance(value, list) else value}"
            for path, value in planned.items()
        ]
    if placement.cpu_offloading_num_layers:
        planned["model.cpu_offloading"] = True
    words = {path: value if isinstance(value, str) else json.dumps(value) for path, value in planned.items()}
    return [
        shlex.quote(f"{setting_names.translate_name(path)}={word}")
        for path, word in words.items()
        if path not in ("trainer.num_nodes", "trainer.devices")
    ]


def program(placement: Placement, trainer: TrainerName) -> str:
    """Return what stands in front of `overrides`, with the recipe that they complete."""
    if trainer == "nemo":
        return f"nemo llm finetune --factory {FACTORY}"
    nodes = f"--nnodes={placement.num_nodes} " if placement.num_nodes > 1 else ""
    return f"torchrun {nodes}--nproc-per-node={placement.devices} -m nemo_longpo.bridge.train --recipe {FACTORY}"


def as_recipe(job: Job, placement: Placement) -> str:
    """Return the YAML file of `nemo llm finetune --yaml FILE`."""
    import yaml

    recipe: dict[str, Any] = {"run": {"factory": FACTORY}}
    for path, value in settings(job, placement).items():
        *folders, name = path.split(".")
        branch = recipe
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[name] = value
    text: str = yaml.safe_dump(recipe, sort_keys=False)
    use = "# nemo llm finetune --yaml THIS_FILE data.paths=SHARDS resume.restore_config.path=CHECKPOINT\n"
    return use + text


def as_json(job: Job, machine: Machine, wishes: Wishes, found: Search, trainer: TrainerName = "nemo") -> dict[str, Any]:
    """Return bytes, FLOPs and seconds. `recommended` is null when nothing fits."""

    def described(candidate: Candidate) -> dict[str, Any]:
        placement, speed = candidate.placement, candidate.speed
        recomputed = placement.recomputed_layers(job.stage_layers(placement))
        derived = {"seconds": speed.seconds, "tokens_per_second": speed.tokens_per_second, "mfu": speed.mfu}
        return {
            "setup": asdict(placement) | {"recompute": placement.recompute, "recompute_layers": recomputed},
            "memory": candidate.memory.as_dict(),
            "speed": asdict(speed) | derived,
            "overrides": overrides(job, placement, trainer),
        }

    candidates = [described(candidate) for candidate in found.candidates]
    limits = {"margin": wishes.margin, "host_memory": wishes.host_memory}
    return {
        "job": asdict(job),
        "machine": asdict(replace(machine, measured=machine.rates)) | limits,
        "flops_per_pair": {"forward": flops.forward_flops(*job.pair), "ratio": layout_ratio(job)},
        "recommended": candidates[0] if candidates else None,
        "alternatives": candidates[1:],
        "refused": [
            {axis: getattr(refusal.placement, axis) for axis in ("tp", "pp", "cp", "dp")}
            | {"reason": refusal.reason, "missing_bytes": refusal.missing}
            for refusal in found.refusals
        ],
    }


def layout_ratio(job: Job) -> float:
    """Return how many times as much the layers compute with two full sequences as with a shared prefix."""
    concatenated, shared = (replace(job, layout=layout).pair for layout in ("concatenated", "shared_prefix"))
    return flops.layers_flops(*concatenated) / flops.layers_flops(*shared)


def nothing_fits(found: Search) -> str:
    """Say in one sentence that nothing is possible, and what comes closest."""
    if not found.refusals:
        return "the sizes given do not divide the number of GPUs; leave --tp, --pp or --cp out"
    closest = found.refusals[0]
    if closest.missing is None:
        return f"nothing is possible; for example {_sizes(closest.placement)}: {closest.reason}"
    return (
        f"nothing fits; the closest is {_sizes(closest.placement)}, which {closest.reason}; take more GPUs, larger "
        "ones (--gpu-memory), or a shorter --length"
    )


def render(job: Job, machine: Machine, wishes: Wishes, found: Search, trainer: TrainerName = "nemo") -> str:
    """Return the report for a terminal; `found` has a candidate."""
    best, gpu = found.candidates[0], machine.gpu
    speed, prompts = best.speed, job.short_prompts
    return "\n".join(
        [
            f"{job.shape.parameters / 1e9:.2f} B parameters; {job.pairs} pairs per step, each a trunk of "
            f"{job.trunk:,} tokens and branches of {job.chosen:,} and {job.rejected:,}, {job.layout}"
            + (f"; {len(prompts)} short prompts of {sum(prompts):,} tokens" if prompts else ""),
            f"{machine.gpus} x {gpu.name} of {gpu.memory / devices.GIB:.1f} GiB, {wishes.margin:.0%} of it left free; "
            f"speed of kernels: {machine.rates.source}",
            "",
            f"recommended: {_describe(job, best.placement)}",
            "",
            *_memory_table(best, gpu.memory * (1 - wishes.margin), wishes.host_memory),
            "",
            f"FLOPs     forward of one pair {flops.forward_flops(*job.pair):.3g}; a shared prefix costs "
            f"{layout_ratio(job):.2f}x less",
            f"          step {speed.model_flops:.3g} (three forwards), {speed.executed_flops:.3g} with recompute",
            f"expected  {speed.seconds:,.1f} s per step: computing {speed.compute.total:,.1f}, exposed communication "
            f"{speed.communication:,.1f}, pipeline idle {speed.idle:,.1f}, optimizer {speed.optimizer:,.1f}",
            f"          computing: {_kinds(speed.compute)}",
            f"          {speed.tokens_per_second:,.0f} tokens/s, {speed.tokens_per_second / speed.gpus:,.0f} per GPU; "
            f"model FLOP utilisation {speed.mfu:.1%}",
            "",
            f"{program(best.placement, trainer)} \\",
            " \\\n".join(f"    {argument}" for argument in overrides(job, best.placement, trainer)),
            *_alternatives(job, found.candidates[1:]),
            *_refusals(found.refusals),
        ]
    )


def _kinds(compute: Compute) -> str:
    kinds = asdict(compute) | {"element-wise": compute.element_wise}
    del kinds["element_wise"]
    return ", ".join(f"{kind.replace('_', ' ')} {seconds:,.1f}" for kind, seconds in kinds.items())


def _memory_table(best: Candidate, usable: float, host_memory: float) -> list[str]:
    memory, devices_of_node = best.memory, best.placement.devices
    lines = [f"  {name:<14}{getattr(memory, name) / devices.GIB:6.1f}  {meaning}" for name, meaning in PARTS.items()]
    remark = f"of {usable / devices.GIB:.1f} usable; of `layer` and `logprobs` the larger counts"
    lines.append(f"  {'total':<14}{memory.total / devices.GIB:6.1f}  {remark}")
    if memory.host:
        node, has = memory.host * devices_of_node / devices.GIB, host_memory / devices.GIB
        remark = f"in host memory for each GPU, so {node:,.1f} of the node's {has:,.1f}"
        lines.append(f"  {'host':<14}{memory.host / devices.GIB:6.1f}  {remark}")
    return ["GiB per GPU", *lines]


def _alternatives(job: Job, candidates: list[Candidate]) -> list[str]:
    lines = [
        f"  {_describe(job, candidate.placement)}: {candidate.memory.total / devices.GIB:.1f} GiB, "
        f"{candidate.speed.tokens_per_second:,.0f} tokens/s"
        for candidate in candidates[:SHOWN]
    ]
    return ["\nalso possible", *lines] if lines else []


def _refusals(refusals: list[Refusal]) -> list[str]:
    """The first that only lack memory, one by one; every other reason once."""
    too_large = [refusal for refusal in refusals if refusal.missing is not None][:SHOWN]
    lines = [f"  {_sizes(refusal.placement)}: {refusal.reason}" for refusal in too_large]
    lines += dict.fromkeys(f"  {refusal.reason}" for refusal in refusals if refusal.missing is None)
    return [f"\nrefused, {len(refusals)} in all", *lines] if lines else []


def _sizes(placement: Placement) -> str:
    return f"tp {placement.tp}, cp {placement.cp}, pp {placement.pp}, dp {placement.dp}"


def _describe(job: Job, placement: Placement) -> str:
    recomputed = placement.recomputed_layers(job.stage_layers(placement))
    parts = [_sizes(placement), f"recompute {placement.recompute}" + (f" of {recomputed} layers" if recomputed else "")]
    return ", ".join([*parts, *sparing(placement)])
