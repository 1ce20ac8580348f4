"""`longpo plan`: how to spread a training job over GPUs, what it needs and how fast it would be. Runs nothing."""

import argparse
import json
from dataclasses import replace
from typing import get_args

from nemo_longpo.arguments import positive_number, whole_number
from nemo_longpo.costs.devices import GIB, GPUS, find_gpu
from nemo_longpo.costs.model_shape import MODELS, load_shape
from nemo_longpo.errors import InputError
from nemo_longpo.placement import PairLayout
from nemo_longpo.terminal import note, show

from .job import BF16, Job, Recompute
from .report import as_json, nothing_fits, render
from .search import MARGIN, Wishes, search
from .speed import Machine

EXAMPLE = """examples:
  longpo plan --model mistral-7b --length 131072 --gpus 8
  longpo plan --model models/Qwen2.5-7B-Instruct --length 524288 --gpus 16 --gpu a800-80gb --json

Memory and time are computed from formulas, not measured; the time is that of the stated utilisation. The exit status
is 1 when nothing fits."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "plan",
        help="choose parallel sizes for a model, a length and a number of GPUs",
        description="Recommend parallel sizes for a training job, with its memory per GPU, FLOPs and speed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    job = parser.add_argument_group("what is trained")
    job.add_argument(
        "--model", required=True, metavar="NAME|DIR", help=f"{', '.join(MODELS)}, a Hugging Face or a NeMo directory"
    )
    job.add_argument(
        "--length",
        type=whole_number,
        required=True,
        metavar="N",
        help="tokens of the trunk: document and first instruction",
    )
    job.add_argument(
        "--branch-tokens",
        type=whole_number,
        default=4500,
        metavar="N",
        help="of each answer branch (default: %(default)s)",
    )
    job.add_argument(
        "--batch-size", type=whole_number, default=8, metavar="N", help="pairs per step (default: %(default)s)"
    )
    job.add_argument(
        "--layout", choices=get_args(PairLayout), default="shared_prefix", help="pair layout (default: %(default)s)"
    )
    _add_machine(parser.add_argument_group("on what"))
    _add_wishes(parser.add_argument_group("fixed beforehand; what is left out is chosen"))
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.set_defaults(run=run)


def _add_machine(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--gpus", type=whole_number, required=True, metavar="N", help="GPUs of all nodes")
    group.add_argument("--gpus-per-node", type=whole_number, default=8, metavar="N", help="default: %(default)s")
    group.add_argument("--gpu", default="h100-80gb", metavar="NAME", help=f"{', '.join(GPUS)} (default: %(default)s)")
    group.add_argument("--gpu-memory", type=positive_number, metavar="GIB", help="instead of what the GPU's name says")
    group.add_argument(
        "--utilisation",
        type=_share,
        default=0.4,
        metavar="SHARE",
        help="of the GPU's peak while it computes (default: %(default)s)",
    )
    group.add_argument(
        "--margin", type=_share, default=MARGIN, metavar="SHARE", help="of memory left free (default: %(default)s)"
    )


def _add_wishes(group: "argparse._ArgumentGroup") -> None:
    for name, meaning in (("tp", "tensor-"), ("pp", "pipeline-"), ("cp", "context-")):
        group.add_argument(f"--{name}", type=whole_number, metavar="N", help=f"{meaning}parallel size")
    group.add_argument("--recompute", choices=get_args(Recompute), help="what the backward computes again")
    group.add_argument(
        "--offload-optimizer", action=argparse.BooleanOptionalAction, help="keep the optimizer in host memory"
    )
    group.add_argument(
        "--gradients", choices=("fp32", "bf16"), default="fp32", help="type of summed gradients (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    job = Job(
        load_shape(arguments.model),
        arguments.length,
        arguments.branch_tokens,
        arguments.branch_tokens,
        arguments.batch_size,
        arguments.layout,
    )
    machine, wishes = _machine(arguments), _wishes(arguments)
    found = search(job, machine, wishes)
    if arguments.json:
        print(json.dumps(as_json(job, machine, wishes, found)))
    elif found.candidates:
        show(render(job, machine, wishes, found))
    if found.candidates:
        return 0
    note(f"longpo plan: {nothing_fits(found)}")
    return 1


def _machine(arguments: argparse.Namespace) -> Machine:
    gpu = find_gpu(arguments.gpu)
    if arguments.gpu_memory is not None:
        gpu = replace(gpu, memory=arguments.gpu_memory * GIB)
    if arguments.gpus > arguments.gpus_per_node and arguments.gpus % arguments.gpus_per_node:
        raise InputError(
            f"--gpus {arguments.gpus} does not fill nodes of {arguments.gpus_per_node}; give a multiple, or another "
            "--gpus-per-node."
        )
    return Machine(gpu, arguments.gpus, arguments.gpus_per_node, arguments.utilisation)


def _wishes(arguments: argparse.Namespace) -> Wishes:
    return Wishes(
        tp=arguments.tp,
        pp=arguments.pp,
        cp=arguments.cp,
        recompute=arguments.recompute,
        offload_optimizer=arguments.offload_optimizer,
        precision=replace(BF16, gradient=2) if arguments.gradients == "bf16" else BF16,
        margin=arguments.margin,
    )


def _share(text: str) -> float:
    value = positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is a share, at most 1")
    return value
