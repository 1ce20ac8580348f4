"""The command `longpo report`: training runs as a page and pictures, and work of any kind while it goes on."""

import argparse
from pathlib import Path

from nemo_longpo.errors import InputError
from nemo_longpo.terminal import note, show

EXAMPLE = """examples:
  longpo report run128k --output report
  longpo report evolution --output report
  longpo report longpo=run128k sft=run128k_sft --output report --evaluation evaluation
  longpo report evolution --follow

RUN is what was log.log_dir, also while the run goes on, or the output of `longpo demo` or `longpo evolve`: then every
round is a run, with its evaluation. The page loads nothing; PNGs need matplotlib.

--follow shows how far the work on RUN has come until it ends: training, a stage of `longpo data`, `longpo eval`, and
what runs steps. The exit status is then 0 if all of it is done, 1 if it failed, was stopped or killed."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `longpo report` to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="show training runs as a page and as pictures",
        description="Write one HTML page and PNGs of the metrics, settings and versions of training runs.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="directory of a training run")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the page and the PNGs go")
    parser.add_argument("--follow", action="store_true", help="show how far the work has come, until it ends")
    parser.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="results of `longpo eval` to show beside; may be repeated",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print its files, or follow the work. Raises InputError if something cannot be read."""
    if arguments.follow == bool(arguments.output):
        raise InputError("longpo report: give either --output DIR, for a page, or --follow, for a view of the work")
    from . import follow, runs

    if arguments.follow:
        try:
            return follow.follow([runs.split_label(given)[1] for given in arguments.runs])
        except KeyboardInterrupt:  # ends the view; the work goes on
            return 130
    from .pages import write_report

    files, notes = write_report(arguments.runs, arguments.output, arguments.evaluation)
    for line in notes:
        note(f"longpo report: {line}")
    show("\n".join(map(str, files)))
    return 0
