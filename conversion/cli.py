"""`longpo convert`: checkpoints between Hugging Face, NeMo and Megatron-Bridge."""

import argparse
import json
from pathlib import Path

from nemo_longpo.errors import InputError
from nemo_longpo.terminal import positive_number, printable, show, whole_number

from .progress import DEFAULT_WORKERS

IMPORT_EXAMPLE = """example:
  longpo convert import --model models/Mistral-7B-Instruct-v0.2 --output checkpoints/mistral-128k \\
      --rope-theta 1e7 --max-length 131072
  longpo convert import --model models/Qwen2.5-7B-Instruct --output checkpoints/qwen-128k --max-length 131072 \\
      --rope-scaling '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'
  longpo convert import --model results --output checkpoints/mistral-128k-bridge --format bridge

The output is a NeMo checkpoint for `resume.restore_config.path`, or with --format bridge one of Megatron-Bridge for
`checkpoint.pretrained_checkpoint`; both under any parallel sizes. Weights keep their dtype and bits. Supported:
Mistral, Qwen2.5, Qwen3 and Llama 3, as safetensors (see --allow-pickle), or in a checkpoint of either trainer, of whose
run the newest complete one is taken. With --optimizer its state comes along, and the run goes on at its step:
give the output to Bridge as `checkpoint.load`, and to NeMo as the first checkpoint of the new run (--output
RUN/longpo/checkpoints/global_step=N). Needs no GPU, and NeMo for its own format; what its libraries print while they
load is shown with LONGPO_VERBOSE=1."""

EXPORT_EXAMPLE = """example:
  longpo convert export --checkpoint results --output models/mistral-longpo

Of a run's directory (its `log.log_dir` or `checkpoint.save`) the newest complete checkpoint is taken, or with --every
all of them. The configuration, tokenizer, chat template and generation settings are those of the imported model; rotary
base and scaling of training are written to config.json. Tensors get the dtype they had before the import, unless
--dtype is given. Checkpoints that NeMo's or Bridge's own import started are taken too: what they do not record is said,
or asked for.
Checkpoints of LoRA adapters (`peft=lora`) are exported as whole models."""

INSPECT_EXAMPLE = """example:
  longpo convert inspect models/Mistral-7B-Instruct-v0.2
  longpo convert inspect --json results

Needs no NeMo. Every weight is read once, in search of NaN and infinities; with --headers-only nothing but headers and
small files is, which takes a moment whatever the model's size. The last lines say what would stop an import, an export
or training and which option helps."""

VERIFY_EXAMPLE = """example:
  longpo convert verify models/Mistral-7B-Instruct-v0.2 checkpoints/mistral-128k --prompt "The capital of France is"
  longpo convert verify checkpoints/mistral-128k models/mistral-exported --strict

Compares the configuration, the small files, every tensor (its bits, or rounded where the dtypes differ), and in fp32
the logits and the residual stream behind every layer. A Hugging Face side is computed by transformers, a checkpoint by
the Megatron model that training builds; each on the CPU, in a process of its own, one after the other.
Memory: for tensors, one group of each side (the embedding, or gate and up of a layer); for logits, one model in fp32
(4 bytes per parameter) and its largest tensor. Disk, in the temporary directory: 8 bytes times tokens times
(vocabulary + layers x hidden size).

Rotary settings, positions, sliding window and dtype may differ, because options of import and export change them, and
so may transformers_version; --strict refuses that too. Where rotary settings differ, logits are compared under A's.
Exit status: 0 equal, 1 different, 2 not comparable (a side is no complete model), or a crash."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `convert` group and its four commands to the parser of `longpo`."""
    convert = subparsers.add_parser(
        "convert", help="convert checkpoints between Hugging Face, NeMo and Megatron-Bridge"
    )
    commands = convert.add_subparsers(dest="convert_command", required=True, metavar="COMMAND")
    for name, summary, example, add_options, run in (
        ("import", "turn a model into a checkpoint to train from", IMPORT_EXAMPLE, _import_options, run_import),
        ("export", "turn a checkpoint into a Hugging Face directory", EXPORT_EXAMPLE, _export_options, run_export),
        ("inspect", "say what a model directory holds, on either side", INSPECT_EXAMPLE, _inspect_options, run_inspect),
        ("verify", "say whether two directories hold the same model", VERIFY_EXAMPLE, _verify_options, run_verify),
    ):
        layout = argparse.RawDescriptionHelpFormatter
        parser = commands.add_parser(name, help=summary, description=summary, epilog=example, formatter_class=layout)
        add_options(parser)
        parser.set_defaults(run=run)


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="Hugging Face directory, or a checkpoint or run"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="checkpoint to write")
    parser.add_argument(
        "--format", choices=("nemo", "bridge"), default="nemo", help="the trainer that reads it (default: %(default)s)"
    )
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
    parser.add_argument(
        "--optimizer",
        action="store_true",
        help="of a checkpoint, take the optimizer's state and the step too, so that the run goes on",
    )
    _add_hashes_option(parser)
    _add_output_options(parser)


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="checkpoint, or a run's directory"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="HF_DIR", help="model directory to write")
    parser.add_argument(
        "--every", action="store_true", help="export every complete checkpoint of a run, each into HF_DIR/ITS_NAME"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="convert all weights to this type")
    parser.add_argument(
        "--max-length", type=whole_number, metavar="N", help="max_position_embeddings of the exported model"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="HF_DIR",
        help="take configuration and tokenizer from this model (for checkpoints that a trainer's own import started)",
    )
    parser.add_argument(
        "--base-checkpoint",
        type=Path,
        metavar="NEMO_DIR",
        help="where the checkpoint that LoRA adapters were trained on lies now (default: where it lay then)",
    )
    _add_hashes_option(parser)
    _add_output_options(parser)


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="DIR", help="Hugging Face directory, checkpoint or run")
    parser.add_argument(
        "--headers-only", action="store_true", help="do not read the weights themselves, so NaN in them is not found"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _verify_options(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="Hugging Face directory, checkpoint or run")
    parser.add_argument(
        "--base", type=Path, metavar="HF_DIR", help="small files of a checkpoint that does not carry its own"
    )
    parser.add_argument(
        "--base-checkpoint", type=Path, metavar="NEMO_DIR", help="what LoRA adapters were trained on, if it was moved"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read weights from .bin files, tensors only")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load whatever a checkpoint names, also what is not known to run no code (see SECURITY.md)",
    )
    parser.add_argument("--strict", action="store_true", help="fail on every difference of fields, files and bits")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="NAME", help="a field or file that may differ (repeatable)"
    )
    parser.add_argument("--no-logits", action="store_true", help="compare what is on disk only; needs no NeMo")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="compare logits on this text too (repeatable)"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="compare logits on each line of a file too")
    parser.add_argument(
        "--random-tokens", type=whole_number, default=128, metavar="N", help="length of a random sequence (default 128)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random sequence (default 0)")
    parser.add_argument(
        "--tolerance",
        type=positive_number,
        default=1e-5,
        metavar="X",
        help="how far logits may be apart, relative to the largest logit of their token (default 1e-5)",
    )
    parser.add_argument(
        "--own-rope", action="store_true", help="compute B's logits under its own rotary settings where they differ"
    )
    _add_hashes_option(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_hashes_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-hashes",
        dest="check_hashes",
        action="store_false",
        help="hold the files of a checkpoint to their recorded sizes only, not to their hashes, which takes "
        "reading all of it, 0.6 s of a core per GB",
    )


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


def _scaling_choice(text: str) -> str | dict[str, object]:
    """Parse `--rope-scaling` for argparse."""
    if text in ("keep", "none"):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is neither keep nor none nor a JSON object")
    return value


def run_import(arguments: argparse.Namespace) -> None:
    from .importer import import_checkpoint

    output = import_checkpoint(
        arguments.model,
        arguments.output,
        format=arguments.format,
        rope_theta=arguments.rope_theta,
        rope_scaling=arguments.rope_scaling,
        max_length=arguments.max_length,
        full_attention=arguments.full_attention,
        allow_pickle=arguments.allow_pickle,
        optimizer=arguments.optimizer,
        check_hashes=arguments.check_hashes,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
    )
    _show_output(output, arguments.json)


def run_export(arguments: argparse.Namespace) -> None:
    from . import exporter

    options = {
        "dtype": arguments.dtype,
        "max_length": arguments.max_length,
        "base": arguments.base,
        "base_checkpoint": arguments.base_checkpoint,
        "check_hashes": arguments.check_hashes,
        "overwrite": arguments.overwrite,
        "workers": arguments.workers,
    }
    if arguments.every:
        written = exporter.export_every(arguments.checkpoint, arguments.output, **options)
    else:
        written = [exporter.export_checkpoint(arguments.checkpoint, arguments.output, **options)]
    for path in written:
        _show_output(path, arguments.json)


def _show_output(output: Path, as_json: bool) -> None:
    show(json.dumps({"output": str(output)}) if as_json else printable(f"wrote {output}"))


def run_inspect(arguments: argparse.Namespace) -> None:
    from .inspection.inspect_model import format_report, inspect_model

    report = inspect_model(arguments.path, headers_only=arguments.headers_only)
    show(json.dumps(report) if arguments.json else format_report(report))


def run_verify(arguments: argparse.Namespace) -> int:
    """Return 1 if the models differ."""
    from .comparison import comparison_report, verify
    from .model_on_disk import Access

    check = verify.LogitCheck(
        random_tokens=arguments.random_tokens,
        seed=arguments.seed,
        prompts=[*arguments.prompt, *(_read_prompts(arguments.prompts) if arguments.prompts else [])],
        tolerance=arguments.tolerance,
        own_rope=arguments.own_rope,
    )
    report = verify.verify(
        arguments.a,
        arguments.b,
        access=Access(
            base=arguments.base,
            base_checkpoint=arguments.base_checkpoint,
            allow_pickle=arguments.allow_pickle,
            check_hashes=arguments.check_hashes,
            trust_checkpoint=arguments.trust_checkpoint,
        ),
        logit_check=None if arguments.no_logits else check,
        allow=arguments.allow,
        strict=arguments.strict,
    )
    show(json.dumps(report.to_json()) if arguments.json else comparison_report.format_report(report))
    return 0 if report.equal else 1


def _read_prompts(path: Path) -> list[str]:
    """Return one prompt per line. Raises InputError if the file is not readable text or holds none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable text file: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no prompt; write one per line")
    return lines
