"""`longpo eval`: the same questions to several models, and one table."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_longpo.data_tools import options, settings
from nemo_longpo.terminal import note, show, whole_number

from .eval_settings import JudgeSettings, QuestionSettings

if TYPE_CHECKING:
    from .plan import Evaluation


def register(subparsers: Any) -> None:
    """Add `eval` to the `longpo` parser."""
    parser = subparsers.add_parser(
        "eval",
        help="measure models at long and at short length, side by side",
        description="Ask models the same questions and compare what they answer. The first model is the one before.",
        epilog="example:\n  longpo eval before=MODEL after=work/model --suite paper --data DATA --output work/eval",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models", nargs="*", metavar="[NAME=]MODEL[@URL]", help="Hugging Face model directory, and its servers"
    )
    parser.add_argument(
        "--suite", required=True, metavar="NAME,…", help="suites, benchmarks, or files of questions (NAME.jsonl)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where answers and results go")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the files of the benchmarks are")
    parser.add_argument(
        "--fetch", action="store_true", help="fetch what is missing there; without a MODEL that is all that is done"
    )
    parser.add_argument(
        "--lengths", type=whole_number, nargs="+", default=[], metavar="TOKENS", help="instead of the benchmarks' own"
    )
    parser.add_argument("--samples", type=whole_number, metavar="N", help="most questions per task and length")
    options.add_settings(parser, QuestionSettings)
    parser.add_argument("--wording", type=Path, metavar="FILE", help="RULER in other words, for a small vocabulary")
    parser.add_argument(
        "--chat-completions",
        action="store_true",
        help="MODEL@URL is a model by its name on any OpenAI-compatible server, which gets messages as text; for "
        "benchmarks whose answers are written",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="for that: counts the tokens of its prompts")
    parser.add_argument("--dry-run", action="store_true", help="count what would be asked, and say how long it takes")
    parser.add_argument(
        "--gpu", default="h100-80gb", metavar="NAME", help="for --dry-run, as in longpo plan (default: %(default)s)"
    )
    parser.add_argument("--gpus", type=whole_number, default=1, metavar="N", help="so many of them (default: 1)")
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="short<-1.0",
        help="exit with 1 if a difference between the last model and the first, in points, is beyond that; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    for kind in (*settings.ENGINE_SETTINGS, settings.TemplateSettings, settings.TemplateKwargs):
        options.add_settings(parser, kind, settings.heading(kind))
    options.add_settings(parser, JudgeSettings, title="judge, for the suite chat")
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    from . import sources, suites

    benchmarks = tuple(suites.choose(arguments.suite.split(",")))
    if arguments.fetch:
        sources.fetch(benchmarks, arguments.data)
        if not arguments.models:
            return 0
    if arguments.chat_completions and arguments.engine == settings.EngineSettings.engine:
        arguments.engine = "server"
    if not arguments.models or arguments.output is None:
        arguments.refuse("the following arguments are required: MODEL, --output")
    sources.require_packages()
    from nemo_longpo.data_tools.engines.engine_options import EngineOptions

    from . import evaluate, plan
    from .results import report, tables, verdict

    day = options.settings_from(settings.TemplateSettings, vars(arguments)).day()
    evaluation = plan.Evaluation(
        models=tuple(arguments.models),
        benchmarks=benchmarks,
        output=arguments.output,
        engine=EngineOptions.from_mapping(vars(arguments)),
        chat_completions=arguments.chat_completions,
        tokenizer=arguments.tokenizer,
        data=arguments.data,
        lengths=tuple(sorted(set(arguments.lengths))),
        samples=arguments.samples,
        wording=arguments.wording,
        judge=options.settings_from(JudgeSettings, vars(arguments)),
        template_kwargs=options.settings_from(settings.TemplateKwargs, vars(arguments)).values(),
        **vars(options.settings_from(QuestionSettings, vars(arguments))),
        **({} if day is None else {"day": day}),
    )
    report.check_output(evaluation.output)
    conditions = verdict.parse_conditions(arguments.fail_if, evaluation.benchmarks, len(evaluation.models))
    if arguments.dry_run:
        return _dry_run(evaluation, arguments)
    recorded = evaluation.recorded()
    summary, content = report.write(evaluation.output, evaluate.evaluate(evaluation), recorded)
    if arguments.json:
        show(report.to_text(content).rstrip())
    else:
        show(f"{tables.terminal_table(summary)}\n\n{content['verdict']}")
        note(f"longpo: wrote {evaluation.output / 'results.html'}, and results.md, results.json, samples/ beside it")
    failures = verdict.failures(conditions, summary)
    for failure in failures:
        note(f"longpo: {failure}")
    return 1 if failures else 0


def _dry_run(evaluation: "Evaluation", arguments: argparse.Namespace) -> int:
    from nemo_longpo.costs import answering, devices

    from . import evaluate, workload

    machine = answering.Machine(gpu=devices.find_gpu(arguments.gpu), gpus=arguments.gpus)
    works, prices = evaluate.estimate(evaluation, machine)
    if arguments.json:
        said = {"work": [asdict(work) for work in works], "assumptions": machine.assumptions(), "judges": prices}
        show(json.dumps(said, indent=1, ensure_ascii=False))
    else:
        show("\n".join([workload.table(works), "", machine.assumptions(), *prices]))
    return 0
