"""Stage 5: per-token log-probs of both answers under the reference model.

"short" (LongPO): each answer behind its own chunk and instruction. "long" (the DPO baseline): each answer in its place
in the whole conversation over the document. The scored ids are those of the long training sequence in both cases.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nemo_longpo.errors import InputError
from nemo_longpo.shards.schema import Span

from ..encoded import EncodedPair, PairEncoder, check_row
from ..engines.base import Engine
from ..model import load_chat, tokenizer_identity
from ..pairs import BRANCHES
from ..runner.parts import PartResult
from ..runner.progress import Tick
from ..runner.rows import Row, read_stage_settings
from ..settings import ScoreSettings
from .score_check import EngineCheck, Scored
from .with_model import LoadedModel, ModelStage, check_long, check_short, run_with_model


def run_score(settings: ScoreSettings, where: ModelStage) -> dict[str, int]:
    """Add token ids and reference log-probs (one per response token, end of turn included) to every turn.

    The input is text pairs or tokenised records. Those made by hand are all checked before the first one is scored.
    Raises InputError.
    """
    _check_imported(where.input, where.model)
    with EngineCheck(where.model, where.engine.common, settings, where.output) as verification:
        work = partial(_score_rows, settings=settings, verification=verification)
        return run_with_model("score", where, settings, work, check=check_row)


@dataclass(frozen=True)
class _Request:
    """Ids to score, and the spans whose log-probs are wanted."""

    doc_id: str
    sequence: list[int]
    spans: list[Span]


def _score_rows(
    rows: list[Row], tick: Tick, loaded: LoadedModel, settings: ScoreSettings, verification: EngineCheck
) -> PartResult:
    encoder = PairEncoder(loaded.chat, loaded.prompts, loaded.engine.vocab_size)
    pairs = [encoder.encode(row) for row in rows]
    requests: list[_Request] = []
    for pair, row in zip(pairs, rows, strict=True):
        made = _short_requests(pair) if settings.ref_context == "short" else _long_requests(pair)
        _check_lengths(made, loaded.engine, settings, row.where)
        requests += made
    sequences, spans = [request.sequence for request in requests], [request.spans for request in requests]
    scores = loaded.engine.score(sequences, spans, tick)
    verification.check(
        loaded.engine,
        [
            Scored(request.doc_id, request.sequence, request.spans, logps)
            for request, logps in zip(requests, scores, strict=True)
        ],
    )
    # Flat over requests and spans, this is the chosen turns, then the rejected turns of each pair, in both modes.
    in_turn = iter([_shortest(logps) for found in scores for logps in found])
    records = [pair.scored({name: [next(in_turn) for _ in range(pair.turns)] for name in BRANCHES}) for pair in pairs]
    counts = Counter(documents_in=len(rows), documents_out=len(rows), turns_out=sum(pair.turns for pair in pairs))
    counts["spelled_ends_left_out"] = sum(pair.spelled_ends for pair in pairs)
    return PartResult(records, counts)


def _short_requests(pair: EncodedPair) -> list[_Request]:
    """One per answer."""
    prompts = pair.short_prompts()
    return [
        _Request(pair.doc_id, [*prompt, *response], [(len(prompt), len(prompt) + len(response))])
        for name in BRANCHES
        for prompt, response in zip(prompts, pair.responses(name), strict=True)
    ]


def _long_requests(pair: EncodedPair) -> list[_Request]:
    """One per branch."""
    long = pair.long()
    trunk = len(long.trunk_ids)
    branches = ((long.chosen_ids, long.chosen_spans), (long.rejected_ids, long.rejected_spans))
    return [
        _Request(pair.doc_id, long.trunk_ids + ids, [(start + trunk, end + trunk) for start, end in spans])
        for ids, spans in branches
    ]


def _check_lengths(requests: list[_Request], engine: Engine, settings: ScoreSettings, where: str) -> None:
    for request in requests:
        if settings.ref_context == "short":
            check_short(engine, request.sequence, 0, where)
        check_long(engine, len(request.sequence), 0, where)


def _check_imported(pairs: Path, model: Path) -> None:
    """Imported ids mean something only to the tokenizer that they were checked with."""
    stage = read_stage_settings(pairs)
    if stage is None or stage["stage"] != "import-hf":
        return
    imported, found = stage["settings"].get("tokenizer_fingerprint"), tokenizer_identity(load_chat(model))
    if imported != found["tokenizer_fingerprint"]:
        raise InputError(
            f"{pairs} was imported with tokenizer {imported}, but {model} has {found['tokenizer_fingerprint']}; give "
            "the same model, or import the dataset again"
        )


def _shortest(logps: np.ndarray) -> list[Any]:
    """The shortest decimals that read back as the same float32 values."""
    return [float(str(value)) for value in logps]
