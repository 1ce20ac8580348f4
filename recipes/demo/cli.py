"""`longpo demo`: the loop on one CPU machine."""

import argparse
import json
from pathlib import Path

from nemo_longpo.steps import add_plan_options, show_plan

EXAMPLE = """example:
  longpo demo --output demo_output

A small model that answers questions about documents of up to 128 tokens writes its own questions and answers about
longer documents, learns from the pairs with NeMo and Megatron-Core (two processes, context parallelism), and comes back
as a Hugging Face model. Takes minutes on two cores. The same command continues an interrupted demo."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from .one_round import DemoSettings

    parser = subparsers.add_parser(
        "demo",
        help="run the whole loop with a small model on this machine",
        description="Data, training and export with a small model, on the CPU.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where everything is written")
    for name, kind, summary in (
        ("documents", int, "long documents to write and to learn from"),
        ("tokens", int, "length of the documents"),
        ("steps", int, "training steps of 4 documents"),
        ("learning_rate", float, "highest learning rate"),
        ("samples", int, "questions per length when measuring"),
        ("seed", int, "seed of documents, questions and training order"),
    ):
        default = getattr(DemoSettings, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=f"{summary} (default: {default})")
    parser.add_argument(
        "--bridge",
        type=Path,
        metavar="BIN",
        help="train with Megatron-Bridge, in the environment with this bin directory (default: with NeMo)",
    )
    add_plan_options(parser)
    parser.add_argument("--json", action="store_true", help="end with the summary as one JSON object")
    parser.set_defaults(run=run_demo_command)


def run_demo_command(arguments: argparse.Namespace) -> int:
    from .one_round import DemoSettings, demo_round, format_summary, run_demo

    options = {name: value for name, value in vars(arguments).items() if name in DemoSettings.__dataclass_fields__}
    settings = DemoSettings(**options | {"output": arguments.output.resolve()})
    if arguments.dry_run:
        steps, _ = demo_round(settings)
        show_plan(steps, settings.output, redo=arguments.redo, as_json=arguments.json)
        return 0
    summary = run_demo(settings, arguments.redo)
    print(json.dumps(summary) if arguments.json else format_summary(summary))
    return 0
