"""What the `longpo data` subcommands do with their arguments. Heavy imports wait until a command runs."""

import argparse
import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from nemo_longpo.terminal import show

from .options import settings_from
from .settings import (
    ChunkSettings,
    CpuWorkShare,
    FilterSettings,
    ImportSettings,
    InstructSettings,
    PackSettings,
    RespondSettings,
    ScoreSettings,
    TemplateSettings,
    WorkShare,
)

Report = dict[str, int]


def reported(work: Callable[[argparse.Namespace], Report]) -> Callable[[argparse.Namespace], None]:
    """A stage's command: do the work, print its report. The undecorated function stays at `__wrapped__`."""

    @wraps(work)
    def run(arguments: argparse.Namespace) -> None:
        _print_report(arguments, work(arguments))

    return run


def _print_report(arguments: argparse.Namespace, report: Report) -> None:
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), "finished": bool(report), "report": report}))
    elif report:
        show(f"{arguments.stage}: {_summary(report)}; written to {arguments.output}")
    elif arguments.dry_run:
        show(f"{arguments.stage}: the settings are fine, and parts of {arguments.output} are missing")
    else:
        show(f"{arguments.stage}: this process is done, others are still at work on parts of {arguments.output}")


def _summary(report: Report) -> str:
    text = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in report.items())
    if report.get("cached_prompt_tokens"):
        text += f" (prefix cache hit rate {report['cached_prompt_tokens'] / report['prompt_tokens']:.1%})"
    return text


@reported
def chunk(arguments: argparse.Namespace) -> Report:
    from .stages.chunk import run_chunk

    values = vars(arguments)
    settings, share = settings_from(ChunkSettings, values), settings_from(CpuWorkShare, values)
    return run_chunk(arguments.input, arguments.model, arguments.output, settings, share)


@reported
def instruct(arguments: argparse.Namespace) -> Report:
    from .stages.instruct import run_instruct

    return run_instruct(settings_from(InstructSettings, vars(arguments)), _where(arguments))


@reported
def respond(arguments: argparse.Namespace) -> Report:
    from .stages.respond import run_respond

    return run_respond(settings_from(RespondSettings, vars(arguments)), _where(arguments))


@reported
def filter(arguments: argparse.Namespace) -> Report:
    from .stages.filter import run_filter

    values = vars(arguments)
    settings, share = settings_from(FilterSettings, values), settings_from(CpuWorkShare, values)
    return run_filter(arguments.input, arguments.output, settings, share, arguments.model)


@reported
def import_hf(arguments: argparse.Namespace) -> Report:
    from .stages.import_hf import run_import_hf

    values = vars(arguments)
    settings, share = settings_from(ImportSettings, values), settings_from(CpuWorkShare, values)
    return run_import_hf(arguments.input, arguments.model, arguments.output, settings, share)


@reported
def score(arguments: argparse.Namespace) -> Report:
    from .stages.score import run_score

    return run_score(settings_from(ScoreSettings, vars(arguments)), _where(arguments))


@reported
def pack(arguments: argparse.Namespace) -> Report:
    from .stages.pack import run_pack

    settings = settings_from(PackSettings, vars(arguments))
    documents = run_pack(arguments.input, arguments.model, arguments.output, settings)
    return {"documents_out": documents} if documents else {}


def inspect(arguments: argparse.Namespace) -> None:
    from .inspection.inspect_shards import inspect_shards
    from .inspection.summary_text import format_summary

    summary = inspect_shards(
        arguments.shards,
        verify=arguments.verify,
        model=arguments.model,
        page=arguments.html,
        samples=arguments.samples,
    )
    show(json.dumps(summary) if arguments.json else format_summary(summary))


def run(arguments: argparse.Namespace) -> None:
    from .pipeline.config import load_pipeline
    from .pipeline.run import run_pipeline

    pipeline = load_pipeline(arguments.config)
    reports = run_pipeline(pipeline)
    if arguments.json:
        print(json.dumps({"output": str(pipeline.output), "finished": True, "reports": reports}))
    for stage, report in reports.items():
        if not arguments.json:
            show(f"{stage}: {_summary(report)}")


def _where(arguments: argparse.Namespace) -> Any:
    from .engines.load import EngineOptions
    from .stages.with_model import ModelStage

    return ModelStage(
        input=arguments.input,
        output=arguments.output,
        model=arguments.model,
        prompts_file=arguments.prompts,
        template=settings_from(TemplateSettings, vars(arguments)),
        engine=EngineOptions.from_mapping(vars(arguments)),
        share=settings_from(WorkShare, vars(arguments)),
    )
