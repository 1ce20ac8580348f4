"""`longpo data …`: the stages from documents to shards, all of them from one file, and a look into shards."""

import argparse
import json
from pathlib import Path
from typing import Any

from nemo_longpo import steps, terminal

from .options import add_settings
from .settings import heading
from .stages.registry import STAGES, Report, StageCall, StageSpec


def register(subparsers: Any) -> None:
    """Add `data` and its subcommands to the `longpo` parser."""
    parser = subparsers.add_parser("data", help="make preference shards from documents")
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for row in STAGES.values():
        _add_stage(commands, row)
    run = _add_command(
        commands, "run", "run all stages from one file, on this machine or a cluster", "longpo data run data.yaml"
    )
    run.add_argument("config", type=Path, metavar="FILE", help="YAML file, explained in docs/data.md")
    steps.add_plan_options(run)
    run.set_defaults(run=_run_pipeline)
    inspect = _add_command(
        commands,
        "inspect",
        "terminal.show what shards hold, and check them",
        "longpo data inspect shards --verify --html shards.html --model MODEL",
    )
    inspect.add_argument("shards", type=Path, metavar="SHARDS", help="output of `longpo data pack`")
    inspect.add_argument("--verify", action="store_true", help="recompute every hash, span and sum")
    inspect.add_argument("--html", type=Path, metavar="FILE", help="write plots and samples as one HTML page")
    inspect.add_argument("--model", type=Path, metavar="HF_DIR", help="whose tokenizer reads the samples to you")
    inspect.add_argument("--samples", type=int, default=5, metavar="N", help="documents on it (default: %(default)s)")
    inspect.set_defaults(run=_inspect)


def _add_command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _add_stage(commands: Any, row: StageSpec) -> None:
    parser = _add_command(commands, row.name, row.summary, row.example)
    count: Any = "+" if row.many_inputs else 1
    parser.add_argument(
        row.input_flag, dest="inputs", nargs=count, required=True, metavar=row.input_word, help=row.input_help
    )
    parser.add_argument("--model", type=Path, required=row.needs_model, metavar="HF_DIR", help=row.model_help)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the result goes")
    if row.takes_prompts:
        parser.add_argument("--prompts", metavar="FILE", help="JSON file that replaces the wording of the prompts")
    for kind in row.settings:
        add_settings(parser, kind, heading(kind))
    parser.set_defaults(run=_run_stage, prompts=None)


def _run_stage(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    call = StageCall(
        stage=arguments.stage,
        inputs=tuple(arguments.inputs),
        output=arguments.output,
        model_given=arguments.model,
        prompts=arguments.prompts,
        values={name: given[name] for name in STAGES[arguments.stage].setting_names()},
    )
    report = call()
    if arguments.json:
        print(json.dumps({"output": str(call.output), "finished": bool(report), "report": report}))
    elif report:
        terminal.show(f"{call.stage}: {_summary(report)}; written to {call.output}")
    elif call.values.get("dry_run"):
        terminal.show(f"{call.stage}: the settings are fine, and parts of {call.output} are missing")
    else:
        terminal.show(f"{call.stage}: this process is done, others still work on parts of {call.output}")


def _summary(report: Report) -> str:
    text = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in report.items())
    if report.get("cached_prompt_tokens"):
        text += f" (prefix cache hit rate {report['cached_prompt_tokens'] / report['prompt_tokens']:.1%})"
    return text


def _run_pipeline(arguments: argparse.Namespace) -> None:
    from .pipeline import config, run

    pipeline = config.load_pipeline(arguments.config)
    if arguments.dry_run:
        steps.show_plan(run.pipeline_steps(pipeline), pipeline.output, redo=arguments.redo, as_json=arguments.json)
        return
    reports = run.run_pipeline(pipeline, arguments.redo)
    if arguments.json:
        print(json.dumps({"output": str(pipeline.output), "finished": True, "reports": reports}))
    for stage, report in reports.items():
        if not arguments.json:
            terminal.show(f"{stage}: {_summary(report)}")


def _inspect(arguments: argparse.Namespace) -> None:
    from .inspection import drawings, inspect_shards

    summary = inspect_shards.inspect_shards(
        arguments.shards,
        verify=arguments.verify,
        model=arguments.model,
        page=arguments.html,
        samples=arguments.samples,
    )
    terminal.show(json.dumps(summary) if arguments.json else drawings.format_summary(summary))
