"""`longpo data …`: the stages from documents to shards."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import commands
from .options import add_settings
from .settings import ENGINE_SETTINGS, STAGE_SETTINGS


def register(subparsers: Any) -> None:
    """Add `data` and its subcommands to the `longpo` parser."""
    parser = subparsers.add_parser("data", help="make preference shards from documents")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    writing = (_add_chunk, _add_instruct, _add_respond, _add_filter, _add_import_hf)
    for add in (*writing, _add_score, _add_pack, _add_run, _add_inspect):
        add(stages)


def _add_chunk(stages: Any) -> None:
    parser = _leaf(
        stages,
        commands.chunk,
        "cut documents into chunks that fit the model",
        "longpo data chunk --input books/ --model MODEL --output work/chunks --chunk-tokens 8192",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="plain text or source code (.txt, .md, .rst, .tex, .py, ...), .jsonl, .jsonl.gz, .jsonl.zst, .parquet, "
        "datasets saved to disk, directories of all these, or hf:OWNER/NAME[:SPLIT]",
    )
    _add_model(parser)
    _add_output(parser)
    _add_settings(parser, "chunk")


def _add_instruct(stages: Any) -> None:
    parser = _leaf(
        stages,
        commands.instruct,
        "let the model write instructions about each chunk",
        "longpo data instruct --input work/chunks --model MODEL --output work/instructed",
    )
    _add_model_stage(parser, "output of `longpo data chunk`", "instruct")


def _add_respond(stages: Any) -> None:
    parser = _leaf(
        stages,
        commands.respond,
        "answer with the chunk and with the whole document",
        "longpo data respond --input work/instructed --model MODEL --output work/responded",
    )
    _add_model_stage(parser, "output of `longpo data instruct`", "respond")


def _add_filter(stages: Any) -> None:
    parser = _leaf(
        stages,
        commands.filter,
        "leave out turns that cannot teach anything",
        "longpo data filter --input work/responded --output work/pairs",
    )
    _add_input(parser, "output of `longpo data respond`, or pairs of your own")
    parser.add_argument(
        "--model", type=Path, metavar="HF_DIR", help="whose special tokens no answer of your own pairs may hold"
    )
    _add_output(parser)
    _add_settings(parser, "filter")


def _add_import_hf(stages: Any) -> None:
    parser = _leaf(
        stages,
        commands.import_hf,
        "take over a published dataset of tokenised pairs",
        "longpo data import-hf --input DATASET --model MODEL --output work/pairs",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="DATASET",
        help="saved dataset, Parquet, JSONL or hf:OWNER/NAME[:SPLIT]",
    )
    _add_model(parser)
    _add_output(parser)
    _add_settings(parser, "import-hf")


def _add_score(stages: Any) -> None:
    parser = _leaf(
        stages,
        commands.score,
        "store the reference model's log-probs of both answers",
        "longpo data score --pairs PAIRS.jsonl --model MODEL --output work/scored",
    )
    _add_model_stage(parser, "output of `longpo data filter` or `import-hf`, or pairs of your own", "score", "--pairs")


def _add_pack(stages: Any) -> None:
    parser = _leaf(
        stages,
        commands.pack,
        "write shards for training",
        "longpo data pack --pairs work/scored --model MODEL --output shards",
    )
    _add_input(parser, "output of `longpo data score`", "--pairs")
    _add_model(parser)
    _add_output(parser)
    _add_settings(parser, "pack")


def _add_inspect(stages: Any) -> None:
    parser = _leaf(
        stages,
        commands.inspect,
        "show what shards hold, and check them",
        "longpo data inspect shards --verify --html shards.html --model MODEL",
    )
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="output of `longpo data pack`")
    parser.add_argument("--verify", action="store_true", help="recompute every hash, span and sum")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write plots and samples as one HTML page")
    parser.add_argument("--model", type=Path, metavar="HF_DIR", help="whose tokenizer reads the samples to you")
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="documents on it (default: %(default)s)")


def _add_run(stages: Any) -> None:
    parser = _leaf(
        stages, commands.run, "run all stages from one file, on this machine or a cluster", "longpo data run data.yaml"
    )
    parser.add_argument("config", type=Path, metavar="FILE", help="YAML file, explained in docs/data.md")


def _leaf(stages: Any, run: Callable, summary: str, example: str) -> argparse.ArgumentParser:
    """A subcommand named like the function that runs it."""
    parser = stages.add_parser(
        run.__name__.replace("_", "-"),
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _add_model_stage(parser: argparse.ArgumentParser, input_help: str, name: str, flag: str = "--input") -> None:
    """What all stages have in common in which the model works."""
    _add_input(parser, input_help, flag)
    _add_model(parser)
    _add_output(parser)
    parser.add_argument("--prompts", metavar="FILE", help="JSON file that replaces the wording of the prompts")
    _add_settings(parser, name)


def _add_settings(parser: argparse.ArgumentParser, name: str) -> None:
    """The settings of a stage, those of one engine under a heading of their own."""
    for kind in STAGE_SETTINGS[name]:
        of_one_engine = kind in ENGINE_SETTINGS[1:]
        add_settings(parser, kind, title=(kind.__doc__ or "").rstrip(".").replace("`", "") if of_one_engine else None)


def _add_input(parser: argparse.ArgumentParser, help: str, flag: str = "--input") -> None:
    parser.add_argument(flag, dest="input", type=Path, required=True, metavar="PATH", help=help)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="HF_DIR", help="Hugging Face model directory")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the result goes")
