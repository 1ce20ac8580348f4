"""`longpo convert`: checkpoints between Hugging Face and NeMo."""

import argparse
import json
from pathlib import Path
from typing import Any

from nemo_longpo.arguments import positive_number, whole_number
from nemo_longpo.terminal import printable, show

from .comparison.cli import VERIFY_EXAMPLE, add_hashes_option, add_verify_options, run_verify
from .workers import DEFAULT_WORKERS

IMPORT_EXAMPLE = """example:
  longpo convert import --model models/Mistral-7B-Instruct-v0.2 --output checkpoints/mistral-128k \\
      --rope-theta 1e7 --max-length 131072
  longpo convert import --model models/Qwen2.5-7B-Instruct --output checkpoints/qwen-128k --max-length 131072 \\
      --rope-scaling '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'

The output is a NeMo checkpoint for `resume.restore_config.path`, under any parallel sizes. Weights keep their dtype and
bits. Supported: Mistral, Qwen2.5 and Llama 3, as safetensors (see --allow-pickle). Needs NeMo, no GPU; what its
libraries print while they load is shown with LONGPO_VERBOSE=1."""

EXPORT_EXAMPLE = """example:
  longpo convert export --checkpoint results --output models/mistral-longpo

Of a run's directory (its `log.log_dir`) the newest complete checkpoint is taken.
The configuration, tokenizer, chat template and generation settings are those of the imported model; rotary base
and scaling of training are written to config.json. Tensors get the dtype they had before the import, unless --dtype is
given. Checkpoints that `nemo llm import` started are taken too: what they do not record is said, or asked for.
Checkpoints of LoRA adapters (`peft=lora`) are exported as whole models."""

INSPECT_EXAMPLE = """example:
  longpo convert inspect models/Mistral-7B-Instruct-v0.2
  longpo convert inspect --json results

Needs no NeMo. Every weight is read once, in search of NaN and infinities; with --headers-only nothing but headers and
small files is, which takes a moment whatever the model's size. The last lines say what would stop an import, an export
or training and which option helps."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    convert = subparsers.add_parser("convert", help="convert checkpoints between Hugging Face and NeMo")
    commands = convert.add_subparsers(dest="convert_command", required=True, metavar="COMMAND")
    _register_import(commands)
    _register_export(commands)
    _register_inspect(commands)
    _register_verify(commands)


def _leaf(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, example: str):
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _scaling_choice(text: str) -> str | dict[str, Any]:
    if text in ("keep", "none"):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is neither keep nor none nor a JSON object")
    return value


def _register_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _leaf(commands, "import", "turn a Hugging Face directory into a NeMo checkpoint", IMPORT_EXAMPLE)
    parser.add_argument("--model", type=Path, required=True, metavar="HF_DIR", help="Hugging Face model directory")
    parser.add_argument("--output", type=Path, required=True, metavar="NEMO_DIR", help="checkpoint to write")
    parser.add_argument("--rope-theta", type=positive_number, metavar="X", help="rotary base of the policy, e.g. 1e7")
    parser.add_argument(
        "--rope-scaling",
        type=_scaling_choice,
        metavar="keep|none|JSON",
        help="keep the model's RoPE scaling under a new --rope-theta, drop it, or set another: a `rope_scaling` object "
        "of type linear, yarn or llama3",
    )
    parser.add_argument(
        "--max-length", type=whole_number, metavar="N", help="positions of the policy (default: the model's own limit)"
    )
    parser.add_argument(
        "--full-attention",
        action="store_true",
        help="drop what limits the model's attention: a sliding window (Mistral v0.1), dual chunks (Qwen2.5-1M)",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="also read pytorch_model.bin files: their tensors, and nothing that would run code",
    )
    _add_output_options(parser)
    parser.set_defaults(run=run_import)


def _register_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _leaf(commands, "export", "turn a NeMo checkpoint into a Hugging Face directory", EXPORT_EXAMPLE)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="NEMO_DIR", help="NeMo checkpoint, or a run's directory"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="HF_DIR", help="model directory to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="convert all weights to this type")
    parser.add_argument(
        "--max-length", type=whole_number, metavar="N", help="max_position_embeddings of the exported model"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="HF_DIR",
        help="take configuration and tokenizer from this model (only for checkpoints that NeMo's own import started)",
    )
    parser.add_argument(
        "--base-checkpoint",
        type=Path,
        metavar="NEMO_DIR",
        help="where the checkpoint that LoRA adapters were trained on lies now (default: where it lay then)",
    )
    add_hashes_option(parser)
    _add_output_options(parser)
    parser.set_defaults(run=run_export)


def _register_inspect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _leaf(commands, "inspect", "say what a model directory holds, on either side", INSPECT_EXAMPLE)
    parser.add_argument("path", type=Path, metavar="DIR", help="Hugging Face directory, NeMo checkpoint or run")
    parser.add_argument(
        "--headers-only", action="store_true", help="do not read the weights themselves, so NaN in them is not found"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_inspect)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model at --output once the new one is complete"
    )
    parser.add_argument(
        "--workers",
        type=whole_number,
        default=DEFAULT_WORKERS,
        metavar="N",
        help="tensors to convert at a time, each in a thread (default: %(default)s); memory grows with them",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _register_verify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _leaf(commands, "verify", "say whether two directories hold the same model", VERIFY_EXAMPLE)
    add_verify_options(parser)
    parser.set_defaults(run=run_verify)


def run_import(arguments: argparse.Namespace) -> int:
    from .importer import import_checkpoint

    output = import_checkpoint(
        arguments.model,
        arguments.output,
        rope_theta=arguments.rope_theta,
        rope_scaling=arguments.rope_scaling,
        max_length=arguments.max_length,
        full_attention=arguments.full_attention,
        allow_pickle=arguments.allow_pickle,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
    )
    _report(arguments, output)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    from .exporter import export_checkpoint

    output = export_checkpoint(
        arguments.checkpoint,
        arguments.output,
        dtype=arguments.dtype,
        max_length=arguments.max_length,
        base=arguments.base,
        base_checkpoint=arguments.base_checkpoint,
        check_hashes=arguments.check_hashes,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
    )
    _report(arguments, output)
    return 0


def run_inspect(arguments: argparse.Namespace) -> int:
    from .inspection.inspect_model import inspect_model
    from .inspection.inspection_text import format_report

    report = inspect_model(arguments.path, headers_only=arguments.headers_only)
    show(json.dumps(report) if arguments.json else format_report(report))
    return 0


def _report(arguments: argparse.Namespace, output: Path) -> None:
    show(json.dumps({"output": str(output)}) if arguments.json else printable(f"wrote {output}"))
