"""Does LongPO lift long accuracy above SFT and DPO on the same data, and keep short accuracy? The paper in miniature.

    python -m benchmarks.replication.replicate --output replication

For every seed a small model writes pairs about long documents; every objective trains on them with NeMo and
Megatron-Core, all checkpoints are exported and measured, and LongPO goes on to a longer round. All of it by public
commands, several at a time. The same command continues after a kill. The settings are in
benchmarks/replication/settings.yaml. Writes replication.json, .md, .svg and .png into the output; with --publish also
into benchmarks/results, and the figure into docs/images.
"""

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from nemo_longpo import atomic, errors, steps, terminal
from nemo_longpo.evaluation.results import pages
from nemo_longpo.line_plot import curves as drawing

from .. import RESULTS, ROOT
from ..common import results
from . import comparison_tables, experiment, learning_curves

NAME = "replication"
FIGURES = ROOT / "docs" / "images"
SETTINGS = Path(__file__).with_name("settings.yaml")
PACKAGES = ("torch", "transformers", "nemo-toolkit", "megatron-core")


class TimeIsUpError(Exception):
    """So many minutes were given, and they have passed."""


def main() -> int:
    parser = results.parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where everything is written")
    parser.add_argument("--settings", type=Path, default=SETTINGS, metavar="FILE", help="instead of settings.yaml")
    parser.add_argument("--quick", action="store_true", help="one seed")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--jobs", type=terminal.whole_number, default=cores, metavar="N", help="steps at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto is a GPU if there is one"
    )
    parser.add_argument("--minutes", type=terminal.positive_number, metavar="N", help="stop then, and report the rest")
    parser.add_argument(
        "--programs", type=Path, metavar="DIR", help="where `longpo`, `nemo` and `python` are (default: here)"
    )
    parser.add_argument("--publish", action="store_true", help="write into benchmarks/results and docs/images, too")
    steps.add_plan_options(parser)
    try:
        return run(parser.parse_args())
    except errors.InputError as error:
        terminal.note(f"{errors.ERROR_MARK}{error}")
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, and write what is known. Returns 1 if something is still missing."""
    settings = experiment.load_settings(arguments.settings)
    seeds = range(1 if arguments.quick else settings.seeds)
    for name in ("python", "longpo", "nemo") if arguments.programs else ():
        if not (arguments.programs / name).exists():
            raise errors.InputError(
                f"--programs {arguments.programs} holds no {name}; give an environment's bin directory"
            )
    place = experiment.Place(
        output=arguments.output.absolute(),
        programs=arguments.programs and arguments.programs.absolute(),
        cuda=_has_gpu() if arguments.device == "auto" else arguments.device == "cuda",
    )
    try:
        plan = experiment.replication_steps(settings, seeds, place)
    except errors.InputError as error:
        raise errors.InputError(f"{arguments.settings}: {error}") from error
    if arguments.dry_run:
        steps.show_plan(plan, place.output, redo=arguments.redo)
        return 0
    failure: errors.InputError | TimeIsUpError | None = None
    try:
        with _within(arguments.minutes):
            steps.run_steps(plan, place.output, redo=arguments.redo, jobs=arguments.jobs)
    except (errors.InputError, TimeIsUpError) as error:
        failure = error
    ended = write(settings, seeds, place, arguments.publish)
    if failure is not None:
        missing = sum(step.name not in ended for step in plan)
        terminal.note(
            f"{errors.ERROR_MARK}{missing} of {len(plan)} steps are missing: {failure}; the same command continues"
        )
    return 0 if failure is None else 1


def write(settings: experiment.Settings, seeds: range, place: experiment.Place, publish: bool) -> dict[str, float]:
    """Write tables, figure and numbers of what has been measured so far; returns the seconds of steps that ended."""
    curves = learning_curves.read_curves(settings, seeds, place)
    seconds = {
        name: record.seconds for name, record in steps.read_records(place.output).items() if record.seconds is not None
    }
    if not curves.found:
        return seconds
    result: dict[str, Any] = results.origin(PACKAGES) | {
        "settings": dataclasses.asdict(settings),
        "pairs": learning_curves.pairs_left(settings, seeds, place),
        **comparison_tables.as_json(curves),
        "seconds": seconds,
    }
    result["machine"] += f", {_gpu_name()}" if place.cuda else ""
    graphs = comparison_tables.graphs(curves)
    lines = [f"![Long and short accuracy over steps]({NAME}.svg)", ""] if graphs else []
    lines += comparison_tables.tables(curves)
    lines += ["", *comparison_tables.verdict(curves)]
    for folder in (place.output, *([RESULTS] if publish else [])):
        results.write_results(NAME, result, lines, folder)
    for folder in (place.output, *([RESULTS, FIGURES] if publish else [])):
        if graphs:
            atomic.write_file(folder / f"{NAME}.svg", pages.svg_of(drawing.draw(*graphs)))
    for graph, name in zip(graphs, ("long", "short", *(f"round-{n}" for n in range(2, 9))), strict=False):
        atomic.write_file(place.output / f"{NAME}-{name}.png", drawing.png(graph))
    return seconds


@contextmanager
def _within(minutes: float | None) -> Iterator[None]:
    """Raise TimeIsUpError in the block after so many minutes."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsUpError(f"{minutes:g} minutes are over")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


if __name__ == "__main__":
    sys.exit(main())
