"""Stage 4: leave out turns that cannot teach anything, counted by reason; what remains is the pairs format."""

from collections import Counter
from pathlib import Path
from typing import Any

from ..engines.base import Tick
from ..pairs import Turn, is_empty, parse_pair
from ..runner.rows import PartsSource, Row
from ..runner.stage import PartResult, Process, Stage, run_stage
from ..settings import CpuPlacement, FilterSettings


def run_filter(input_path: Path, output: Path, settings: FilterSettings, placement: CpuPlacement) -> dict[str, int]:
    """Write pairs without empty, truncated or identical answers. Raises InputError for a malformed pair."""
    source = PartsSource(input_path, rows_per_part=placement.part_size)
    for row in source.rows():
        parse_pair(row)
    return run_stage(
        Stage(
            name="filter",
            source=source,
            output=output,
            settings=settings.recorded(),
            make_process=_make_process,
            placement=placement,
            num_workers=placement.num_workers,
        )
    )


def _make_process() -> Process:
    return _filter_rows


def drop_reason(turn: Turn, raw: dict[str, Any]) -> str | None:
    """Why a turn is left out, or None. `raw` is the turn as it was read, with the engine's finish reasons."""
    if is_empty(turn, "chosen") or is_empty(turn, "rejected"):
        return "empty"
    if "length" in (raw.get("chosen_finish_reason"), raw.get("rejected_finish_reason")):
        return "truncated"
    if turn.chosen.strip() == turn.rejected.strip():
        return "identical"
    return None


def _filter_rows(rows: list[Row], tick: Tick) -> PartResult:
    counts: Counter[str] = Counter(documents_in=len(rows))
    records = []
    for row in rows:
        pair = parse_pair(row)
        kept = []
        for turn, raw in zip(pair.turns, row.record["turns"], strict=True):
            counts["turns_in"] += 1
            reason = drop_reason(turn, raw)
            if reason is None:
                kept.append({name: value for name, value in vars(turn).items() if value is not None})
            else:
                counts[f"dropped_{reason}"] += 1
        counts["turns_out"] += len(kept)
        if kept:
            records.append({"doc_id": pair.doc_id, "document": pair.document, "turns": kept})
    counts["documents_out"] = len(records)
    return PartResult(records, counts)
