"""The command `longpo plan`: recommend how to spread a training job over GPUs; `--calibrate` measures one."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

from nemo_longpo import atomic, placement
from nemo_longpo.costs import devices, model_shape
from nemo_longpo.costs.rates import KINDS
from nemo_longpo.errors import InputError
from nemo_longpo.terminal import note, positive_number, show, whole_number
from nemo_longpo.trainers import TrainerName

from . import rates_file
from .job import Job
from .report import as_json, as_recipe, nothing_fits, render
from .search import Wishes, search
from .speed import Machine

EXAMPLE = """examples:
  longpo plan --model mistral-7b --length 131072 --gpus 8
  longpo plan --model models/Qwen2.5-7B-Instruct --length 524288 --gpus 16 --gpu a800-80gb --json
  longpo plan --model mistral-7b --length 131072 --gpus 8 --trainer bridge
  longpo plan --model mistral-7b --length 131072 --gpus 8 --recipe plan.yaml
  longpo plan --calibrate
  nemo llm finetune --yaml plan.yaml data.paths=SHARDS resume.restore_config.path=CHECKPOINT

Memory and time are computed from formulas; how fast kernels run was measured where the report says so. The exit
status is 1 when nothing fits."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `longpo plan` to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="choose parallel sizes for a model, a length and a number of GPUs",
        description="Recommend parallel sizes for a training job, with its memory per GPU, FLOPs and speed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_job(parser.add_argument_group("what is trained"))
    _add_machine(parser.add_argument_group("on what"))
    _add_wishes(parser.add_argument_group("fixed beforehand; what is left out is chosen"))
    _add_rates(parser.add_argument_group("how fast kernels run"))
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument(
        "--trainer", choices=get_args(TrainerName), default="nemo", help="whose command is printed (default: nemo)"
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE.yaml", help="write what is recommended for `nemo llm finetune --yaml`"
    )
    parser.set_defaults(run=run)


def _add_job(job: "argparse._ArgumentGroup") -> None:
    models = f"{', '.join(model_shape.MODELS)}, a Hugging Face or a NeMo directory"
    job.add_argument("--model", metavar="NAME|DIR", help=models)
    _add_count(job, "--length", "tokens of the trunk: document and first instruction")
    _add_count(job, "--branch-tokens", "of each answer branch", placement.TYPICAL_BRANCH)
    job.add_argument(
        "--short-tokens",
        type=whole_number,
        nargs="+",
        default=Job.short_prompts,
        metavar="N",
        help="of each turn's short prompt, a number for each turn, where the objective reads them "
        "(loss_type=solopo; default: none)",
    )
    _add_count(job, "--batch-size", "pairs per step", Job.pairs)
    job.add_argument(
        "--layout",
        choices=get_args(placement.PairLayout),
        default=Job.layout,
        help="pair layout (default: %(default)s)",
    )


def _add_machine(machine: "argparse._ArgumentGroup") -> None:
    _add_count(machine, "--gpus", "GPUs of all nodes")
    _add_count(machine, "--gpus-per-node", "of them", Machine.gpus_per_node)
    machine.add_argument(
        "--gpu", default="h100-80gb", metavar="NAME", help=f"{', '.join(devices.GPUS)} (default: %(default)s)"
    )
    machine.add_argument("--gpu-memory", type=positive_number, metavar="GIB", help="instead of the named GPU's own")
    machine.add_argument(
        "--margin",
        type=_share,
        default=Wishes.margin,
        metavar="SHARE",
        help="of memory left free (default: %(default)s)",
    )
    machine.add_argument(
        "--host-memory",
        type=positive_number,
        default=Wishes.host_memory / devices.GIB,
        metavar="GIB",
        help="of a node, for what is kept there (default: 2 TB, a DGX H100's)",
    )


def _add_wishes(wishes: "argparse._ArgumentGroup") -> None:
    for flag, meaning in (("--tp", "tensor-"), ("--pp", "pipeline-"), ("--cp", "context-")):
        _add_count(wishes, flag, f"{meaning}parallel size")
    wishes.add_argument("--recompute", choices=get_args(placement.Recompute), help="what the backward computes again")
    wishes.add_argument(
        "--offload-optimizer", action=argparse.BooleanOptionalAction, help="keep the optimizer in host memory"
    )
    wishes.add_argument(
        "--offload-layer-inputs",
        action=argparse.BooleanOptionalAction,
        help="keep the inputs of recomputed layers in host memory",
    )
    wishes.add_argument(
        "--mlp-tile-tokens",
        type=lambda text: 0 if text == "none" else whole_number(text),
        metavar="N|none",
        help="rows of a feed-forward part that are computed at once, and again in the backward",
    )
    wishes.add_argument(
        "--gradients", choices=("fp32", "bf16"), default="fp32", help="type of summed gradients (default: %(default)s)"
    )


def _add_rates(speed: "argparse._ArgumentGroup") -> None:
    speed.add_argument(
        "--calibrate",
        action="store_true",
        help="measure this machine's GPU, under a minute, and write the rates; without --model that is all",
    )
    speed.add_argument(
        "--rates",
        metavar=f"FILE|{rates_file.DATA_SHEET}",
        help=f"rates that --calibrate has written (default: those of this machine, if it is such a GPU), or "
        f"{rates_file.DATA_SHEET}: what is known of the GPU",
    )


def _add_count(group: "argparse._ArgumentGroup", flag: str, meaning: str, default: int | None = None) -> None:
    meaning += "" if default is None else " (default: %(default)s)"
    group.add_argument(flag, type=whole_number, metavar="N", default=default, help=meaning)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; 1 if nothing fits. Raises InputError if a value does not go with another."""
    if arguments.calibrate:
        _calibrate(arguments.rates)
        if arguments.model is None:
            return 0
    if missing := [f"--{name}" for name in ("model", "length", "gpus") if getattr(arguments, name) is None]:
        raise InputError(f"longpo plan needs {', '.join(missing)}; or --calibrate, to measure this machine's GPU")
    recipe: Path | None = arguments.recipe
    if recipe and arguments.trainer != "nemo":
        raise InputError("--recipe writes a file of NeMo; with --trainer bridge the printed command has all settings.")
    if recipe and (recipe.suffix not in (".yaml", ".yml") or not recipe.parent.is_dir()):
        raise InputError(
            f"--recipe {recipe}: give a file in an existing directory whose name ends with .yaml; "
            "`nemo llm finetune` reads others differently."
        )
    job, machine, wishes = _job(arguments), _machine(arguments), _wishes(arguments)
    found = search(job, machine, wishes)
    if arguments.json:
        print(json.dumps(as_json(job, machine, wishes, found, arguments.trainer)))
    elif found.candidates:
        show(render(job, machine, wishes, found, arguments.trainer))
    if not found.candidates:
        note(f"longpo plan: {nothing_fits(found)}")
        return 1
    if recipe:
        atomic.write_file(recipe, as_recipe(job, found.candidates[0].placement))
    return 0


def _calibrate(wish: str | None) -> None:
    if wish == rates_file.DATA_SHEET:
        raise InputError(f"--calibrate writes a file; give one with --rates instead of {wish}, or leave it out")
    from . import calibration

    file = Path(wish) if wish else rates_file.default_file()
    rates_file.check_writable(file)
    found = calibration.calibrate()
    rates_file.write(file, found)
    for kind in KINDS:
        note(f"{kind:<16}{getattr(found.rates, kind) / 1e12:8.3g}e12 per second: {found.measured[kind]}")
    preset = devices.preset_of_device(found.device)
    use = f"plans for --gpu {preset} use them" if preset and not wish else f"give plans --rates {file}"
    note(f"longpo plan: wrote the rates of {found.device} to {file}; {use}")


def _job(arguments: argparse.Namespace) -> Job:
    job = Job(
        shape=model_shape.load_shape(arguments.model),
        trunk=arguments.length,
        chosen=arguments.branch_tokens,
        rejected=arguments.branch_tokens,
        pairs=arguments.batch_size,
        layout=arguments.layout,
        short_prompts=tuple(arguments.short_tokens),
    )
    if job.short_prompts and max(job.short_prompts) > job.trunk:
        raise InputError(
            f"--short-tokens {max(job.short_prompts)} is more than --length {job.trunk}; a short prompt is a part of "
            "the document."
        )
    return job


def _machine(arguments: argparse.Namespace) -> Machine:
    gpu = devices.find_gpu(arguments.gpu)
    if arguments.gpu_memory is not None:
        gpu = replace(gpu, memory=arguments.gpu_memory * devices.GIB)
    if arguments.gpus > arguments.gpus_per_node and arguments.gpus % arguments.gpus_per_node:
        raise InputError(
            f"--gpus {arguments.gpus} does not fill nodes of {arguments.gpus_per_node}; give a multiple, or another "
            "--gpus-per-node."
        )
    return Machine(gpu, arguments.gpus, arguments.gpus_per_node, rates_file.measured_rates(arguments.rates, gpu.name))


def _wishes(arguments: argparse.Namespace) -> Wishes:
    return Wishes(
        tp=arguments.tp,
        pp=arguments.pp,
        cp=arguments.cp,
        recompute=arguments.recompute,
        offload_optimizer=arguments.offload_optimizer,
        offload_layer_inputs=arguments.offload_layer_inputs,
        mlp_tile_tokens=arguments.mlp_tile_tokens,
        host_memory=arguments.host_memory * devices.GIB,
        grad_reduce_in_fp32=arguments.gradients == "fp32",
        margin=arguments.margin,
    )


def _share(text: str) -> float:
    """Parse a share above 0 and at most 1, for argparse."""
    value = positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is a share, at most 1")
    return value
