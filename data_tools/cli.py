"""`longpo data …`: the stages from documents to shards."""

import argparse
from pathlib import Path
from typing import Any

from . import commands


def register(subparsers: Any) -> None:
    """Add `data` and its subcommands to the `longpo` parser."""
    parser = subparsers.add_parser("data", help="make preference shards from documents")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for add in (_add_chunk, _add_instruct, _add_respond, _add_filter, _add_score, _add_pack, _add_inspect):
        add(stages)


def _leaf(stages: Any, name: str, summary: str, example: str, run: Any) -> argparse.ArgumentParser:
    parser = stages.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_io(parser: argparse.ArgumentParser, source: str, source_help: str, *, model: bool = True) -> None:
    parser.add_argument(source, type=Path, required=True, metavar="PATH", help=source_help)
    if model:
        parser.add_argument("--model", type=Path, required=True, metavar="HF_DIR", help="Hugging Face model directory")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the result goes")


def _add_placement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=int, default=0, help="this process's number (default: 0)")
    parser.add_argument("--world-size", type=int, default=1, help="how many processes share the parts (default: 1)")
    parser.add_argument("--part-size", type=int, default=32, help="documents per part, where not given (default: 32)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=["transformers"], default="transformers", help="what runs the model")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="tokens per batch (default: 16384)")
    parser.add_argument("--prompts", metavar="FILE", help="JSON file that replaces the wording of the prompts")


def _add_sampling(parser: argparse.ArgumentParser, *, new_tokens: int, temperature: float, top_p: float) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=new_tokens, help=f"(default: {new_tokens})")
    parser.add_argument("--temperature", type=float, default=temperature, help=f"0: greedy (default: {temperature})")
    parser.add_argument("--top-p", type=float, default=top_p, help=f"(default: {top_p})")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")


def _add_chunk(stages: Any) -> None:
    example = "longpo data chunk --input books/ --model MODEL --output work/chunks --chunk-tokens 8192"
    parser = _leaf(stages, "chunk", "cut documents into chunks that fit the model", example, commands.chunk)
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="text, JSONL, Parquet, directories")
    parser.add_argument("--model", type=Path, required=True, metavar="HF_DIR", help="Hugging Face model directory")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the result goes")
    parser.add_argument("--chunk-tokens", type=int, default=32768, help="longest chunk (default: 32768)")
    parser.add_argument("--chunks-per-document", type=int, default=4, help="most chunks drawn (default: 4)")
    parser.add_argument("--min-document-tokens", type=int, default=1, help="leave out shorter documents (default: 1)")
    parser.add_argument("--max-document-tokens", type=int, help="leave out longer documents (default: no limit)")
    parser.add_argument("--seed", type=int, default=0, help="for drawing chunks (default: 0)")
    _add_placement(parser)


def _add_instruct(stages: Any) -> None:
    example = "longpo data instruct --input work/chunks --model MODEL --output work/instructed"
    parser = _leaf(stages, "instruct", "let the model write instructions about each chunk", example, commands.instruct)
    _add_io(parser, "--input", "output of `longpo data chunk`")
    parser.add_argument("--pool-size", type=int, default=4, help="instructions to draw one from (default: 4)")
    _add_sampling(parser, new_tokens=512, temperature=0.7, top_p=0.9)
    _add_engine(parser)
    _add_placement(parser)


def _add_respond(stages: Any) -> None:
    example = "longpo data respond --input work/instructed --model MODEL --output work/responded"
    parser = _leaf(stages, "respond", "answer with the chunk and with the whole document", example, commands.respond)
    _add_io(parser, "--input", "output of `longpo data instruct`")
    _add_sampling(parser, new_tokens=1024, temperature=0.0, top_p=1.0)
    _add_engine(parser)
    _add_placement(parser)


def _add_filter(stages: Any) -> None:
    example = "longpo data filter --input work/responded --output work/pairs"
    parser = _leaf(stages, "filter", "leave out empty, truncated and identical answers", example, commands.filter)
    _add_io(parser, "--input", "output of `longpo data respond`, or pairs of your own", model=False)
    _add_placement(parser)


def _add_score(stages: Any) -> None:
    example = "longpo data score --pairs PAIRS.jsonl --model MODEL --output work/scored"
    parser = _leaf(stages, "score", "store the reference model's log-probs of both answers", example, commands.score)
    _add_io(parser, "--pairs", "output of `longpo data filter`, or a .jsonl file of pairs")
    parser.add_argument(
        "--ref-context",
        choices=["short", "long"],
        default="short",
        help="what the reference reads: the chunk (short, LongPO) or the document (long, DPO); default: short",
    )
    _add_engine(parser)
    _add_placement(parser)


def _add_pack(stages: Any) -> None:
    example = "longpo data pack --pairs work/scored --model MODEL --output shards"
    parser = _leaf(stages, "pack", "write shards for training", example, commands.pack)
    _add_io(parser, "--pairs", "output of `longpo data score`")
    parser.add_argument("--max-records", type=int, default=1024, help="documents per file (default: 1024)")
    parser.add_argument("--max-bytes", type=int, default=1 << 30, help="bytes per file (default: 1 GiB)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_inspect(stages: Any) -> None:
    example = "longpo data inspect shards --verify"
    parser = _leaf(stages, "inspect", "show what shards hold, and check them", example, commands.inspect)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="output of `longpo data pack`")
    parser.add_argument("--verify", action="store_true", help="recompute every hash, span and sum")
    parser.add_argument("--json", action="store_true", help="print JSON")
