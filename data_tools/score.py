"""Stage 5: per-token log-probs of both answers under the reference model.

"short" (LongPO): each answer behind its own chunk and instruction. "long" (the DPO baseline): each answer in its place
in the whole conversation over the document. The scored ids are those of the long training sequence in both cases.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .chat import ChatFormat
from .engines.base import Engine, Span
from .model import load_chat, model_identity, tokenizer_identity
from .options import EngineOptions, Placement, check_fits, choose_prompts
from .pairs import Pair, answer_ids, check_answers, parse_pair
from .prompts import Prompts
from .rows import PartsSource, Row
from .stage import PartResult, Process, Stage, Tick, run_stage


def run_score(
    pairs: Path,
    model: Path,
    output: Path,
    *,
    ref_context: str,
    prompts_file: str | None,
    engine_options: EngineOptions,
    placement: Placement,
) -> dict[str, int]:
    """Add token ids and reference log-probs (one per response token, end of turn included) to every turn.

    All pairs are checked before the first one is scored. Raises InputError.
    """
    source = PartsSource(pairs, rows_per_part=placement.part_size)
    for _, rows in source.parts(range(len(source.rows_in_parts))):
        for row in rows:
            check_answers(parse_pair(row), row.where)
    prompts = choose_prompts(prompts_file, source.history())
    chat = load_chat(model)

    def make_process() -> Process:
        engine = engine_options.load(model)
        return lambda rows, tick: _score_rows(rows, tick, chat, engine, prompts, ref_context)

    return run_stage(
        Stage(
            name="score",
            source=source,
            output=output,
            settings={"ref_context": ref_context, "engine": engine_options.name, "prompts": prompts.to_dict()}
            | {"model": model_identity(model, engine_options.dtype)}
            | tokenizer_identity(chat),
            make_process=make_process,
            rank=placement.rank,
            world_size=placement.world_size,
        )
    )


def users_of(pair: Pair, prompts: Prompts) -> list[str]:
    """The user messages of the long conversation: the document with the first instruction, then the instructions."""
    first, *others = [turn.instruction for turn in pair.turns]
    return [prompts.ask_about(pair.document, first), *others]


def _score_rows(
    rows: list[Row], tick: Tick, chat: ChatFormat, engine: Engine, prompts: Prompts, ref_context: str
) -> PartResult:
    """Two lists of scored sequences per pair, chosen then rejected, in one call to the engine."""
    pairs = [parse_pair(row) for row in rows]
    answers = [
        {name: answer_ids(chat, pair, name, engine.vocab_size, row.where) for name in ("chosen", "rejected")}
        for pair, row in zip(pairs, rows, strict=True)
    ]
    sequences: list[list[int]] = []
    spans: list[list[Span]] = []
    for pair, answer, row in zip(pairs, answers, rows, strict=True):
        make = _short_sequences if ref_context == "short" else _long_sequences
        made = make(chat, pair, answer, prompts)
        if ref_context == "short":
            for sequence, _ in made:
                check_fits(engine, sequence, 0, row.where)
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
