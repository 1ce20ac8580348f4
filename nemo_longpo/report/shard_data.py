"""The pairs that runs were trained on: what each stage kept and dropped, lengths and log-probs, and samples to read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_longpo import json_input
from nemo_longpo.data_tools.inspection import drawings, inspect_shards
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.results.tables import NOTHING, Row, Table
from nemo_longpo.terminal import count, share

from .runs import Place, Run

MEASURED, SAMPLES = 400, 12
"""Documents of each directory that are measured, and those that are shown."""

_REPAIR = "make the stage again, or leave it out of the report"
_COUNTS = {
    "documents_in": "documents in",
    "documents_out": "documents out",
    "turns_in": "turns in",
    "turns_out": "turns out",
    "requests": "requests",
    "prompt_tokens": "tokens read",
    "generated_tokens": "tokens written",
}
_SPREADS = {
    "tokens_per_sequence": "tokens of a sequence: document, instruction, longer answers",
    "turns_per_document": "turns of a document",
    "chosen_tokens_per_turn": "tokens of a chosen answer",
    "rejected_tokens_per_turn": "tokens of a rejected answer",
    "similarity_per_turn": "similarity of both answers",
    "chosen_logp_per_token": "reference log p per token, chosen",
    "rejected_logp_per_token": "reference log p per token, rejected",
    "margin_per_turn": "reference log p, chosen − rejected, of a turn",
}
_COLUMNS = ("min", "p5", "median", "p95", "max", "mean")


@dataclass(frozen=True, kw_only=True)
class ShardData:
    """One directory of shards, ready for the page; `samples` is the page about them, `name` its file."""

    title: str
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""
    samples: str = field(default="", repr=False)


def gather(runs: Sequence[Run], places: Sequence[Place]) -> list[ShardData]:
    """Return what is known of every directory of shards that the runs were given, each once, and of runs without any.

    What is not there any more, or damaged, is a sentence on the page.
    """
    users: dict[Path, list[str]] = {}
    starts: dict[Path, list[Path]] = {}
    found = []
    for run, place in zip(runs, places, strict=True):
        if run.inputs is None:
            found.append(ShardData(title=run.label, notes=("No record says on which shards this run was trained.",)))
            continue
        for given in run.inputs.shards:
            path = _find(Path(given.path), place)
            users.setdefault(path, []).append(run.label)
            starts.setdefault(path, []).extend([Path(run.inputs.start.path)] if run.inputs.start else [])
    for number, (path, labels) in enumerate(users.items(), 1):
        title = f"{', '.join(dict.fromkeys(labels))}: {path}"
        found.append(_shard_data(path, title, f"shards-{number}.html", starts[path]))
    return found


def _find(recorded: Path, place: Place) -> Path:
    """Return the shards where they were, or where a round that was moved has them."""
    moved = place.path.parent / "data" / recorded.name
    return moved if not recorded.is_dir() and moved.is_dir() else recorded


def _shard_data(path: Path, title: str, name: str, starts: Sequence[Path]) -> ShardData:
    if not path.is_dir():
        return ShardData(title=title, notes=("These shards are not there any more: nothing is known of them.",))
    notes: list[str] = []
    try:
        models = [start / "context" / "hf" for start in starts if (start / "context" / "hf").is_dir()]
        summary, samples, without = inspect_shards.shard_page(path, models[:1], samples=SAMPLES, most=MEASURED)
    except InputError as error:
        return ShardData(title=title, tables=tuple(_stage_tables(path, {}, notes)), notes=(str(error), *notes))
    notes += [without] if without else []
    tables = (*_stage_tables(path, summary["generation"], notes), _lengths(summary))
    return ShardData(title=title, tables=tables, notes=tuple(notes), name=name, samples=samples)


def _lengths(summary: Mapping[str, Any]) -> Table:
    counts, spreads = summary["counts"], summary["distributions"]
    measured, documents = summary["measured"], counts["documents"]
    preferred = share(summary["reference_prefers_chosen"]["turns"])
    part = "" if measured == documents else f"The spreads are those of {measured:,} of them, evenly spaced. "
    return Table(
        title="Shards",
        columns=_COLUMNS,
        rows=tuple(
            Row(name=label, cells=tuple(drawings.signed(spreads[name][column]) for column in _COLUMNS))
            for name, label in _SPREADS.items()
        ),
        notes=(
            f"{count(documents, 'document')} with {count(counts['turns'], 'turn')}. {part}The reference, "
            f"which read the {summary['ref_context']} context, prefers the chosen answer in {preferred} of the turns.",
        ),
    )


def _stage_tables(shards: Path, generation: Mapping[str, Any], notes: list[str]) -> Iterator[Table]:
    """Yield what the stages beside the shards report, if the shards were made of what these stages made."""
    reports: dict[str, dict[str, Any]] = {}
    for path in sorted(shards.parent.glob("*/report.json")):
        try:
            stage = json_input.read_json_object(path.with_name("settings.json"), _REPAIR)
            if stage.get("stage") in generation and stage.get("settings") == generation[stage["stage"]]:
                reports[stage["stage"]] = json_input.read_json_object(path, _REPAIR)
        except InputError as error:
            notes.append(str(error))
    reports = {name: reports[name] for name in generation if name in reports}
    if not reports:
        notes.append("The stages that made these shards do not lie beside them: what they dropped is not known.")
        return
    columns = {name: title for name, title in _COUNTS.items() if any(name in own for own in reports.values())}
    yield Table(
        title="Stages",
        columns=tuple(columns.values()),
        rows=tuple(
            Row(name=stage, cells=tuple(_whole(own.get(name)) for name in columns)) for stage, own in reports.items()
        ),
        notes=("A dash: the stage does not count it.",),
    )
    yield from _dropped(reports)


def _dropped(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    rows = []
    for stage, own in reports.items():
        turns = own.get("turns_in")
        for name in sorted(own, key=lambda name: (-own[name] if isinstance(own[name], int) else 0, name)):
            if name.startswith("dropped_"):
                part = own[name] / turns if isinstance(turns, int) and turns and isinstance(own[name], int) else None
                cells = (stage, _whole(own[name]), NOTHING if part is None else share(part))
                rows.append(Row(name=drawings.words(name.removeprefix("dropped_")), cells=cells))
    if rows:
        yield Table(title="Dropped, by reason", columns=("stage", "turns", "of its turns"), rows=tuple(rows))


def _whole(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else NOTHING
