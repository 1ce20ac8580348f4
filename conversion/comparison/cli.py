"""Options of `longpo convert verify`."""

import argparse
import json
from pathlib import Path

from nemo_longpo.arguments import positive_number, whole_number
from nemo_longpo.errors import InputError
from nemo_longpo.terminal import show

VERIFY_EXAMPLE = """example:
  longpo convert verify models/Mistral-7B-Instruct-v0.2 checkpoints/mistral-128k --prompt "The capital of France is"
  longpo convert verify checkpoints/mistral-128k models/mistral-exported --strict

Compares the configuration, the small files, every tensor (its bits, or rounded where the dtypes differ), and in fp32
the logits and the residual stream behind every layer. A Hugging Face side is computed by transformers, a NeMo side by
the Megatron model that training builds; each on the CPU, in a process of its own, one after the other.
Memory: for tensors, one group of each side (the embedding, or gate and up of a layer); for logits, one model in fp32
(4 bytes per parameter) and its largest tensor. Disk, in the temporary directory: 8 bytes times tokens times
(vocabulary + layers x hidden size).

Rotary settings, positions, sliding window and dtype may differ, because options of import and export change them, and
so may transformers_version; --strict refuses that too. Where rotary settings differ, logits are compared under A's.
Exit status: 0 equal, 1 different, 2 not comparable (a side is no complete model), or a crash."""


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="Hugging Face directory or NeMo checkpoint")
    parser.add_argument(
        "--base", type=Path, metavar="HF_DIR", help="small files of a NeMo side that does not carry its own"
    )
    parser.add_argument(
        "--base-checkpoint", type=Path, metavar="NEMO_DIR", help="what LoRA adapters were trained on, if it was moved"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read weights from .bin files, tensors only")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="build whatever a NeMo side names, also what is not known to run no code (see SECURITY.md)",
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
    add_hashes_option(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_hashes_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-hashes",
        dest="check_hashes",
        action="store_false",
        help="hold the files of a NeMo checkpoint to their recorded sizes only, not to their hashes, which takes "
        "reading all of it, 0.6 s of a core per GB",
    )


def run_verify(arguments: argparse.Namespace) -> int:
    from ..model_on_disk import Access
    from .comparison_text import format_report
    from .verify import LogitCheck, verify

    questions = LogitCheck(
        random_tokens=arguments.random_tokens,
        seed=arguments.seed,
        prompts=[*arguments.prompt, *(_lines(arguments.prompts) if arguments.prompts else [])],
        tolerance=arguments.tolerance,
        own_rope=arguments.own_rope,
    )
    report = verify(
        arguments.a,
        arguments.b,
        access=Access(
            base=arguments.base,
            base_checkpoint=arguments.base_checkpoint,
            allow_pickle=arguments.allow_pickle,
            check_hashes=arguments.check_hashes,
            trust_checkpoint=arguments.trust_checkpoint,
        ),
        questions=None if arguments.no_logits else questions,
        allow=arguments.allow,
        strict=arguments.strict,
    )
    show(json.dumps(report.to_json()) if arguments.json else format_report(report))
    return 0 if report.equal else 1


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable text file: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no prompt; write one per line")
    return lines
