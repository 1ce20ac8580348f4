"""The report as Markdown, as one HTML page that loads nothing, and the plot as a file of its own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nemo_longpo.data_tools.inspection import drawings, inspect_shards
from nemo_longpo.line_plot import panels
from nemo_longpo.terminal import printable

from . import paper_layout, plot, tables
from .summary import Measured, Summary

FOLDER = Path(__file__).parent
_PER_TASK = 2
_MOST_QUESTIONS = 60
_MARKS = re.compile(r"[\\`*_{}\[\]<>#|~&]")


@dataclass(frozen=True)
class Asked:
    """A question to show: the answers are (label of the model, points, text)."""

    task: str
    id: str
    expected: str
    answers: tuple[tuple[str, str, str], ...]


def markdown(summary: Summary, verdict: str) -> str:
    """Return the tables as Markdown."""
    settings = _flat({"settings": summary.settings, "versions": summary.versions})
    parts = [
        f"# Evaluation: {_escaped(', '.join(summary.labels))}",
        f"**{_escaped(verdict)}** (points of 100, ± is half of the 95 % interval)",
        *(_markdown_table(table) for table in _tables(summary)),
        "## Models, settings, versions",
        "\n".join(f"- {_escaped(model.label)}: {_escaped(_identity(model.identity))}" for model in summary.models),
        "\n".join(f"- {_escaped(name)}: {_escaped(value)}" for name, value in settings.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _identity(identity: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in _flat(identity).items())


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Every leaf by its dotted name; lists as words, what is not set as "none"."""
    leaves: dict[str, str] = drawings.flatten(_said(settings))
    return leaves


def _said(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _said(own) for name, own in value.items()}
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _tables(summary: Summary) -> list[tables.Table]:
    return [*paper_layout.paper_tables(summary), *tables.length_tables(summary), tables.task_table(summary)]


def _markdown_table(table: tables.Table) -> str:
    lines = [
        f"## {_escaped(table.title)}",
        "",
        _line(["", *table.columns]),
        "|---" + "|--:" * len(table.columns) + "|",
        *(_line([row.name, *row.cells]) for row in table.rows),
    ]
    return "\n".join(lines) + "".join(f"\n\n{_escaped(note)}" for note in table.notes)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKS.sub(lambda found: "\\" + found[0], printable(text))


def svg(summary: Summary) -> str | None:
    """Return the plot, or None if nothing was measured at lengths."""
    drawn = plot.draw(summary)
    return None if drawn is None else svg_of(drawn)


def svg_of(drawing: panels.Plot) -> str:
    """Return a drawing as an SVG that stands alone."""
    text: str = inspect_shards.environment(panels.FOLDER).get_template("line_plot.svg").render(plot=drawing)
    return f"{text}\n"


def page(summary: Summary, verdict: str) -> str:
    """Return the HTML page. What models wrote stands in it as text, hidden characters spelled out."""
    drawn = plot.draw(summary)
    own = (FOLDER / "results.css").read_text(encoding="utf-8")
    template = inspect_shards.environment(FOLDER, panels.FOLDER).get_template("results.html")
    text: str = template.render(
        style=Markup(inspect_shards.style() + own),
        labels=summary.labels,
        verdict=verdict,
        summary=summary,
        parts=["Lengths"] * (drawn is not None) + ["Tables", "Answers", "Provenance"],
        plot=drawn,
        tables=_tables(summary),
        questions=_questions(summary),
        flatten=_flat,
    )
    return f"{text}\n"


def _questions(summary: Summary) -> list[Asked]:
    """Of every task those that changed most in either direction, up to a bounded number."""
    found = [question for task in summary.tasks for question in _of_task(summary, task)]
    return found[:: max(1, -(-len(found) // _MOST_QUESTIONS))]


def _of_task(summary: Summary, task: Measured) -> list[Asked]:
    models = [(label, scores) for label in summary.labels if (scores := summary.scores(label, task))]
    answers = [(label, {sample.id: sample for sample in scores.samples}) for label, scores in models]
    (_, first), (_, last) = answers[0], answers[-1]
    common = [name for name in first if all(name in own for _, own in answers)]
    changed = sorted(common, key=lambda name: last[name].score - (first[name].score if len(answers) > 1 else 0))
    chosen = dict.fromkeys([*changed[:_PER_TASK], *changed[-_PER_TASK:]])
    title = task.title if task.length is None else f"{task.title} {tables.tokens(task.length)}"
    return [
        Asked(
            title,
            name,
            _text(first[name].expected),
            tuple(
                (label, f"{task.scale * own[name].score:.4g} of {task.scale:.4g}", _text(own[name].answer))
                for label, own in answers
            ),
        )
        for name in chosen
        if len(answers) < 2 or len({own[name].score for _, own in answers}) > 1
    ]


def _text(value: Any) -> str:
    """What was written or expected: text, a number, several texts, or log-likelihoods of choices."""
    if isinstance(value, list | tuple):
        return " | ".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in value)
    return str(value)
