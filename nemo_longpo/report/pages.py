"""The report's files: one page that loads nothing, and a PNG of every chart."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from nemo_longpo import atomic
from nemo_longpo.data_tools.inspection import inspect_shards
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.results import pages as results_pages, paper_layout, plot, summary, tables
from nemo_longpo.evaluation.results.report import RESULTS
from nemo_longpo.evaluation.results.results_json import read_summary
from nemo_longpo.line_plot import curves, panels

from . import charts, shard_data
from .runs import Run, find_places, read_runs

PAGE = "training.html"
_FOLDER = Path(__file__).parent
_MARK = '<meta name="generator" content="longpo report">'


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `longpo eval` found, ready for the page."""

    title: str
    verdict: str
    summary: summary.Summary

    @property
    def tables(self) -> list[tables.Table]:
        return [*paper_layout.paper_tables(self.summary), *tables.length_tables(self.summary)]

    @property
    def plot(self) -> panels.Plot | None:
        return plot.draw(self.summary)


def write_report(given: Sequence[str], output: Path, evaluations: Sequence[Path] = ()) -> tuple[list[Path], list[str]]:
    """Write the page and, where matplotlib is installed, the PNGs; return their paths, and sentences about the runs.

    `given` are `[NAME=]RUN`; the evaluations that lie beside the training of a round are shown too.
    `evaluations` are directories of `longpo eval`, or their results.json. Raises InputError if one of them is damaged
    or missing, or if the output cannot be written; then nothing is written.
    """
    _check_output(output)
    places = find_places(given)
    runs = read_runs(places)
    found = [
        (run.label, place.evaluation)
        for run, place in zip(runs, places, strict=True)
        if place.evaluation and (place.evaluation / RESULTS).is_file()
    ]
    results = [_evaluation(*own) for own in (*found, *((str(path), path) for path in evaluations))]
    graphs = charts.graphs(runs)
    data = shard_data.gather(runs, places)
    files: dict[str, str | bytes] = {PAGE: page(runs, graphs, results, data)}
    files |= {own.name: own.samples for own in data if own.samples}
    notes = [run.warning for run in runs if run.warning]
    if importlib.util.find_spec("matplotlib"):
        files |= {f"{graph.name}.png": curves.png(graph) for graph in graphs}
    else:
        notes.append("no PNGs are written without matplotlib; install nemo_longpo[report] for them")
    with atomic.explain_full_disk(output, "nothing is lost"):
        output.mkdir(parents=True, exist_ok=True)
    if (output / PAGE).exists():  # ours, with the PNGs and samples of other runs
        for path in (*(output / f"{name}.png" for name in charts.names()), *output.glob("shards-[0-9]*.html")):
            path.unlink(missing_ok=True)
    for name, content in files.items():
        atomic.write_file(output / name, content)
    return [output / name for name in files], notes


def _check_output(output: Path) -> None:
    above = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise InputError(f"{above} is no directory; give --output another one")
    if not os.access(above, os.W_OK):
        raise InputError(f"{above} cannot be written to; give --output another directory")
    present = output / PAGE
    if present.exists() and _MARK.encode() not in present.read_bytes()[:2000]:
        raise InputError(f"{present} is not of longpo report; give --output another directory")


def _evaluation(title: str, path: Path) -> Evaluation:
    file = path / RESULTS if path.is_dir() else path
    found, verdict = read_summary(file)
    return Evaluation(title=title, verdict=verdict, summary=found)


def page(
    runs: Sequence[Run],
    graphs: Sequence[curves.Graph],
    evaluations: Sequence[Evaluation] = (),
    data: Sequence[shard_data.ShardData] = (),
) -> str:
    """Return the page. What runs wrote stands in it as text, hidden characters spelled out."""
    style = [inspect_shards.style(), *(file.read_text(encoding="utf-8") for file in _styles())]
    versions = [run.versions for run in runs]
    parts = {"Runs": runs, "Charts": runs, "Numbers": runs, "Evaluation": evaluations, "Data": data, "Settings": runs}
    text: str = (
        inspect_shards.environment(_FOLDER, results_pages.FOLDER, panels.FOLDER)
        .get_template(PAGE)
        .render(
            mark=Markup(_MARK),
            style=Markup("".join(style)),
            runs=runs,
            overview=charts.overview(runs),
            plots=[curves.draw(graph) for graph in graphs],
            thinned=any(len(run.steps) > curves.MOST_POINTS for run in runs),
            numbers=[charts.numbers(run) for run in runs],
            left_out=charts.left_out(runs),
            evaluations=evaluations,
            by_round=charts.lengths_by_round([(own.title, own.summary) for own in evaluations]),
            data=data,
            settings=charts.by_run("Settings", runs, [run.settings for run in runs]),
            versions=charts.by_run("Versions", runs, versions) if any(versions) else None,
            parts=[name for name, there in parts.items() if there],
        )
    )
    return f"{text}\n"


def _styles() -> tuple[Path, ...]:
    return (panels.FOLDER / "line_plot.css", results_pages.FOLDER / "results.css", _FOLDER / "training.css")
