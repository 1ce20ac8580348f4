"""The `longpo` command: find the right tool, and turn bad input into one clear line.

Every group of subcommands lies beside the code that it runs, in a module with `register(subparsers)`. A subcommand sets
`run` on its parser: a function from the parsed arguments to an exit status or None.
"""

import argparse
import functools
import sys
import traceback

from nemo_longpo import __version__, atomic
from nemo_longpo.errors import ERROR_MARK, InputError
from nemo_longpo.terminal import READER_LEFT, escape_what_the_terminal_lacks, note, reader_left, show


@functools.cache
def build_parser() -> argparse.ArgumentParser:
    from nemo_longpo.conversion.cli import register as register_convert
    from nemo_longpo.data_tools.cli import register as register_data
    from nemo_longpo.doctor import register as register_doctor
    from nemo_longpo.evaluation.cli import register as register_eval
    from nemo_longpo.evolution.cli import register as register_evolve
    from nemo_longpo.planning.cli import register as register_plan
    from nemo_longpo.recipes.demo.cli import register as register_demo
    from nemo_longpo.report.cli import register as register_report

    parser = argparse.ArgumentParser(
        prog="longpo",
        description="Turn a short-context model into a long-context one with preference data that it writes itself.",
    )
    parser.add_argument("--version", action="version", version=f"nemo_longpo {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for register in (
        register_data,
        register_convert,
        register_plan,
        register_report,
        register_eval,
        register_evolve,
        register_doctor,
        register_demo,
    ):
        register(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status: 0 on success, 2 on bad input or a crash, 130 on Ctrl-C.

    1 is a result: `convert verify` found a difference, nothing fits in `plan`, `doctor` misses something. 141: nobody
    reads the output any more, as in `longpo … | head -1`.
    """
    escape_what_the_terminal_lacks()
    try:
        status = _run(argv)
    except SystemExit:  # of argparse, which has printed help or what is wrong
        reader_left()
        raise
    return READER_LEFT if reader_left() else status


def _run(argv: list[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except InputError as error:
        note(f"{ERROR_MARK}{error}")
        return 2
    except Exception as error:  # else Python would end with 1, and a script would take the crash for an answer
        if isinstance(error, BrokenPipeError) and reader_left(failed=True):
            return READER_LEFT
        if isinstance(error, OSError) and (sentence := atomic.unusable_place(error)):
            note(f"{ERROR_MARK}{sentence}")
            return 2
        show(traceback.format_exc(), file=sys.stderr)
        note("longpo: this is a fault of the program, not of its input; please report it with the lines above")
        return 2
    except KeyboardInterrupt:
        note("longpo: interrupted; the same command starts what is not finished again")
        return 130


if __name__ == "__main__":
    sys.exit(main())
