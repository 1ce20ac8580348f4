"""What the `longpo data` subcommands do with their arguments. Heavy imports wait until a command runs."""

import argparse
import json
from typing import Any

from nemo_longpo.errors import InputError


def _placement(arguments: argparse.Namespace) -> Any:
    from .options import Placement

    if arguments.part_size < 1:
        raise InputError(f"--part-size {arguments.part_size} must be at least 1")
    return Placement(arguments.rank, arguments.world_size, arguments.part_size)


def _engine(arguments: argparse.Namespace) -> Any:
    from .options import EngineOptions

    return EngineOptions(arguments.engine, arguments.dtype, arguments.device, arguments.batch_tokens)


def _print_report(arguments: argparse.Namespace, report: dict[str, int]) -> None:
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), "finished": bool(report), "report": report}))
    elif report:
        summary = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in report.items())
        print(f"{arguments.stage}: {summary}; written to {arguments.output}")
    else:
        print(f"{arguments.stage}: this rank is done, other parts are still missing in {arguments.output}")


def chunk(arguments: argparse.Namespace) -> None:
    from .chunk import ChunkSettings, run_chunk

    settings = ChunkSettings(
        chunk_tokens=arguments.chunk_tokens,
        chunks_per_document=arguments.chunks_per_document,
        min_document_tokens=arguments.min_document_tokens,
        max_document_tokens=arguments.max_document_tokens,
        seed=arguments.seed,
    )
    report = run_chunk(arguments.input, arguments.model, arguments.output, settings, _placement(arguments))
    _print_report(arguments, report)


def instruct(arguments: argparse.Namespace) -> None:
    from .instruct import InstructSettings, run_instruct

    settings = InstructSettings(
        pool_size=arguments.pool_size,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    _print_report(arguments, _generate(run_instruct, arguments, settings))


def respond(arguments: argparse.Namespace) -> None:
    from .respond import RespondSettings, run_respond

    settings = RespondSettings(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    _print_report(arguments, _generate(run_respond, arguments, settings))


def _generate(run: Any, arguments: argparse.Namespace, settings: Any) -> dict[str, int]:
    if arguments.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {arguments.max_new_tokens} must be at least 1")
    if arguments.temperature < 0 or not 0 < arguments.top_p <= 1:
        raise InputError("--temperature must be at least 0 and --top-p above 0 and at most 1")
    return run(
        settings,
        input_path=arguments.input,
        model=arguments.model,
        output=arguments.output,
        prompts_file=arguments.prompts,
        engine_options=_engine(arguments),
        placement=_placement(arguments),
    )


def filter(arguments: argparse.Namespace) -> None:
    from .filters import run_filter

    _print_report(arguments, run_filter(arguments.input, arguments.output, _placement(arguments)))


def score(arguments: argparse.Namespace) -> None:
    from .score import run_score

    report = run_score(
        arguments.pairs,
        arguments.model,
        arguments.output,
        ref_context=arguments.ref_context,
        prompts_file=arguments.prompts,
        engine_options=_engine(arguments),
        placement=_placement(arguments),
    )
    _print_report(arguments, report)


def pack(arguments: argparse.Namespace) -> None:
    from .pack import run_pack

    limits = {"max_records": arguments.max_records, "max_bytes": arguments.max_bytes}
    documents = run_pack(arguments.pairs, arguments.model, arguments.output, **limits)
    _print_report(arguments, {"documents_out": documents})


def inspect(arguments: argparse.Namespace) -> None:
    from .inspect_shards import format_summary, inspect_shards

    summary = inspect_shards(arguments.shards, verify=arguments.verify)
    print(json.dumps(summary) if arguments.json else format_summary(summary))
