"""The command `longpo report`: training runs as a page and pictures."""

import argparse
from pathlib import Path

from nemo_longpo.terminal import note, show

EXAMPLE = """examples:
  longpo report run128k --output report
  longpo report evolution --output report
  longpo report longpo=run128k sft=run128k_sft --output report --evaluation evaluation

RUN is what was log.log_dir, also while the run goes on, or the output of `longpo demo` or `longpo evolve`: then every
round is a run, with its evaluation. The page loads nothing; PNGs need matplotlib."""


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
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the page and the PNGs go")
    parser.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="results of `longpo eval` to show beside; may be repeated",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the report and print its files. Raises InputError if a run or an evaluation cannot be read."""
    from .pages import write_report

    files, notes = write_report(arguments.runs, arguments.output, arguments.evaluation)
    for line in notes:
        note(f"longpo report: {line}")
    show("\n".join(map(str, files)))
