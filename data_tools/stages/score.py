"""Stage 5: per-token log-probs of both answers under the reference model.

"short" (LongPO): each answer behind its own chunk and instruction. "long" (the DPO baseline): each answer in its place
in the whole conversation over the document. The scored ids are those of the long training sequence in both cases.
"""

from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from ..chat.format import ChatFormat
from ..chat.prompts import Prompts
from ..engines.base import Span, Tick
from ..pairs import Pair, answer_ids, check_answers, parse_pair
from ..runner.rows import Row
from ..runner.stage import PartResult
from ..settings import ScoreSettings
from .with_model import Bench, ModelStage, check_long, check_short, run_with_model


def run_score(settings: ScoreSettings, where: ModelStage) -> dict[str, int]:
    """Add token ids and reference log-probs (one per response token, end of turn included) to every turn.

    All pairs are checked before the first one is scored. Raises InputError.
    """
    return run_with_model("score", where, settings, partial(_score_rows, settings=settings), check=_check_row)


def _check_row(row: Row) -> None:
    check_answers(parse_pair(row), row.where)


def users_of(pair: Pair, prompts: Prompts) -> list[str]:
    """The user messages of the long conversation: the document with the first instruction, then the instructions."""
    first, *others = [turn.instruction for turn in pair.turns]
    return [prompts.ask_about(pair.document, first), *others]


def _score_rows(rows: list[Row], tick: Tick, bench: Bench, settings: ScoreSettings) -> PartResult:
    """Two lists of scored sequences per pair, chosen then rejected, in one call to the engine."""
    chat, engine, short = bench.chat, bench.engine, settings.ref_context == "short"
    pairs = [parse_pair(row) for row in rows]
    answers = [
        {name: answer_ids(chat, pair, name, engine.vocab_size, row.where) for name in ("chosen", "rejected")}
        for pair, row in zip(pairs, rows, strict=True)
    ]
    sequences: list[list[int]] = []
    spans: list[list[Span]] = []
    for pair, answer, row in zip(pairs, answers, rows, strict=True):
        made = (_short_sequences if short else _long_sequences)(chat, pair, answer, bench.prompts)
        for sequence, _ in made:
            if short:
                check_short(engine, sequence, 0, row.where)
            check_long(engine, len(sequence), 0, row.where)
        sequences += [sequence for sequence, _ in made]
        spans += [span for _, span in made]
    # Flat over sequences and spans, this is chosen turns then rejected turns of each pair, in both modes.
    scores = iter([logps for found in engine.score(sequences, spans, tick) for logps in found])
    records = []
    for pair, answer in zip(pairs, answers, strict=True):
        turns: list[dict[str, Any]] = [{"chunk": turn.chunk, "instruction": turn.instruction} for turn in pair.turns]
        for name in ("chosen", "rejected"):
            for turn, scored, ids in zip(pair.turns, turns, answer[name], strict=True):
                scored |= {name: getattr(turn, name), f"{name}_token_ids": ids}
                scored[f"ref_{name}_logps"] = _shortest(next(scores))
        records.append({"doc_id": pair.doc_id, "document": pair.document, "turns": turns})
    turns_out = sum(len(pair.turns) for pair in pairs)
    return PartResult(records, Counter(documents_in=len(rows), documents_out=len(rows), turns_out=turns_out))


_Scored = list[tuple[list[int], list[Span]]]


def _short_sequences(chat: ChatFormat, pair: Pair, answers: dict[str, list[list[int]]], prompts: Prompts) -> _Scored:
    made = []
    for name in ("chosen", "rejected"):
        for turn, ids in zip(pair.turns, answers[name], strict=True):
            prompt = chat.prompt(prompts.ask_about(turn.chunk, turn.instruction))
            sequence = [*prompt, *chat.finished(ids)]
            made.append((sequence, [(len(prompt), len(sequence))]))
    return made


def _long_sequences(chat: ChatFormat, pair: Pair, answers: dict[str, list[list[int]]], prompts: Prompts) -> _Scored:
    long = chat.long_pair(users_of(pair, prompts), answers["chosen"], answers["rejected"])
    trunk = len(long.trunk_ids)
    return [
        (long.trunk_ids + branch, [(start + trunk, end + trunk) for start, end in spans])
        for branch, spans in ((long.chosen_ids, long.chosen_spans), (long.rejected_ids, long.rejected_spans))
    ]


def _shortest(logps: np.ndarray) -> list[Any]:
    """The shortest decimals that read back as the same float32 values."""
    return [float(str(value)) for value in logps]
