"""The paper's tables with ours in them: its numbers are data (paper.yaml), and so is the order of its columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.yaml_input import read_yaml_mapping

from .summary import Measured, Summary
from .tables import NOTHING, Row, Table, change_cell, mean_cell, tokens

PAPER = Path(__file__).parents[1] / "paper.yaml"


@dataclass(frozen=True, kw_only=True)
class PaperModel:
    name: str
    context: str
    scores: dict[str, float]
    by_others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    title: str
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The content of paper.yaml: what the authors published, and how their tables are laid out."""

    source: str
    tables: tuple[PaperTable, ...]
    models: tuple[PaperModel, ...]
    headings: dict[str, str] = field(default_factory=dict)


@cache
def read_paper(path: Path = PAPER) -> Paper:
    """Read paper.yaml. Raises InputError if a model has a number for a column that no table has."""
    content = read_yaml_mapping(path, "restore the file that is installed with nemo_longpo")
    tables = tuple(PaperTable(title=own["title"], columns=tuple(own["columns"])) for own in content["tables"])
    models = tuple(_paper_model(own) for own in content["models"])
    columns = {column for table in tables for column in table.columns}
    for model in models:
        if unknown := sorted({*model.scores, *model.by_others} - columns):
            raise InputError(
                f"{path}: {model.name} has a number for {unknown[0]}, which is no column; correct the name"
            )
    return Paper(
        source=f"arXiv {content['arxiv']}, {content['source']}",
        tables=tables,
        models=models,
        headings=content["headings"],
    )


def _paper_model(own: dict[str, Any]) -> PaperModel:
    return PaperModel(
        name=own["name"], context=own["context"], scores=own["scores"], by_others=tuple(own.get("by_others", ()))
    )


def paper_tables(summary: Summary) -> list[Table]:
    """The paper's tables that have something of ours in them."""
    paper = read_paper()
    return [
        _paper_table(summary, paper, table)
        for table in paper.tables
        if any(summary.of_column(column) for column in table.columns)
    ]


def _paper_table(summary: Summary, paper: Paper, table: PaperTable) -> Table:
    known = {column for model in paper.models for column in model.scores}
    columns = [column for column in table.columns if column in known or summary.of_column(column)]
    groups = {column: summary.of_column(column) for column in columns}
    ours = [
        Row(
            name=model.label,
            cells=(tokens(model.max_length), *(mean_cell(group, model.label) for group in groups.values())),
        )
        for model in summary.models
    ]
    changes = [
        Row(
            name=f"{label} − {summary.labels[0]}",
            cells=(NOTHING, *(change_cell(group, label) for group in groups.values())),
            kind="change",
        )
        for label in summary.labels[1:]
    ]
    theirs = [
        Row(
            name=f"{model.name} (paper)",
            cells=(model.context, *(_published(model, column) for column in columns)),
            kind="paper",
        )
        for model in paper.models
        if any(column in model.scores for column in columns)
    ]
    return Table(
        title=table.title,
        columns=("context", *(paper.headings.get(column, column) for column in columns)),
        rows=(*ours, *changes, *theirs),
        notes=tuple(_notes(summary, paper, columns, [group for group in groups.values() if group])),
    )


def _notes(summary: Summary, paper: Paper, columns: Sequence[str], groups: Sequence[Measured]) -> Iterable[str]:
    starred = any(set(columns) & set(model.by_others) for model in paper.models)
    yield f"Rows of the paper: {paper.source}." + " * from the report of that model's makers." * starred
    for group in groups:
        lengths = [own.length for own in summary.by_length[group.name] if own.length is not None]
        if lengths and group.name == "ruler":
            yield f"RULER here is the mean over {', '.join(map(tokens, lengths))} tokens."
        if not group.complete:
            yield f"{group.title} is the mean of {group.coverage}: not the paper's number."
        for judge in dict.fromkeys(task.judge for task in summary.scores_of(group) if task.judge):
            yield f"{group.title} was judged by {judge.name}, from {judge.first_day} to {judge.last_day}."


def _published(model: PaperModel, column: str) -> str:
    if column not in model.scores:
        return NOTHING
    return f"{model.scores[column]:.2f}{'*' if column in model.by_others else ''}"
