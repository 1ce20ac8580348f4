"""What the `longpo data` subcommands do with their arguments. Heavy imports wait until a command runs."""

import argparse
import json
from typing import Any

from .options import settings_from
from .settings import (
    ChunkSettings,
    CpuPlacement,
    FilterSettings,
    InstructSettings,
    PackSettings,
    Placement,
    RespondSettings,
    ScoreSettings,
)


def chunk(arguments: argparse.Namespace) -> None:
    from .stages.chunk import run_chunk

    values = vars(arguments)
    settings, placement = settings_from(ChunkSettings, values), settings_from(CpuPlacement, values)
    _print_report(arguments, run_chunk(arguments.input, arguments.model, arguments.output, settings, placement))


def instruct(arguments: argparse.Namespace) -> None:
    from .stages.instruct import run_instruct

    _print_report(arguments, run_instruct(settings_from(InstructSettings, vars(arguments)), _where(arguments)))


def respond(arguments: argparse.Namespace) -> None:
    from .stages.respond import run_respond

    _print_report(arguments, run_respond(settings_from(RespondSettings, vars(arguments)), _where(arguments)))


def filter(arguments: argparse.Namespace) -> None:
    from .stages.filter import run_filter

    values = vars(arguments)
    settings, placement = settings_from(FilterSettings, values), settings_from(CpuPlacement, values)
    _print_report(arguments, run_filter(arguments.input, arguments.output, settings, placement))


def score(arguments: argparse.Namespace) -> None:
    from .stages.score import run_score

    _print_report(arguments, run_score(settings_from(ScoreSettings, vars(arguments)), _where(arguments)))


def pack(arguments: argparse.Namespace) -> None:
    from .stages.pack import run_pack

    settings = settings_from(PackSettings, vars(arguments))
    documents = run_pack(arguments.input, arguments.model, arguments.output, settings)
    _print_report(arguments, {"documents_out": documents})


def inspect(arguments: argparse.Namespace) -> None:
    from .inspection.summary import format_summary, inspect_shards

    summary = inspect_shards(arguments.shards, verify=arguments.verify)
    print(json.dumps(summary) if arguments.json else format_summary(summary))


def _where(arguments: argparse.Namespace) -> Any:
    from .engines.load import EngineOptions
    from .stages.with_model import ModelStage

    return ModelStage(
        input=arguments.input,
        output=arguments.output,
        model=arguments.model,
        prompts_file=arguments.prompts,
        engine=EngineOptions.from_mapping(vars(arguments)),
        placement=settings_from(Placement, vars(arguments)),
    )


def _print_report(arguments: argparse.Namespace, report: dict[str, int]) -> None:
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), "finished": bool(report), "report": report}))
    elif report:
        summary = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in report.items())
        if report.get("cached_prompt_tokens"):
            summary += f" (prefix cache hit rate {report['cached_prompt_tokens'] / report['prompt_tokens']:.1%})"
        print(f"{arguments.stage}: {summary}; written to {arguments.output}")
    else:
        print(f"{arguments.stage}: this process is done, others are still at work on parts of {arguments.output}")
