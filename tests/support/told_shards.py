"""Shards with given answers and log-probs, so that tests know every value."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_longpo.data_tools.chat.format import ChatFormat, as_ids, as_spans
from nemo_longpo.data_tools.model import tokenizer_identity
from nemo_longpo.shards.manifest import Provenance, ReferenceModel
from nemo_longpo.shards.schema import PairRecord
from nemo_longpo.shards.writer import ShardWriter

GENERATION = {"respond": {"temperature": 0.0, "prompts": {"ask": "{document}\n<b>{instruction}</b>"}}, "filter": {}}


@dataclass(frozen=True)
class Turn:
    """`chosen_logp` and `rejected_logp` are means per token with the end of turn; `chunk` is in the document."""

    instruction: str
    chosen: str
    rejected: str
    chosen_logp: float
    rejected_logp: float
    chunk: str | None = None


@dataclass(frozen=True)
class Told:
    doc_id: str
    document: str
    turns: list[Turn]
    short_prompts: bool = False


def write_told(directory: Path, chat: ChatFormat, *documents: Told) -> Path:
    provenance = Provenance(
        **tokenizer_identity(chat),
        vocab_size=len(chat.tokenizer),
        reference=ReferenceModel("c" * 64, {"rope_theta": 10000.0}, "bfloat16"),
        ref_context="short",
        generation=GENERATION,
    )
    with ShardWriter(directory, provenance, max_records=2) as writer:
        for told in documents:
            writer.add(_record(chat, told))
    return directory


def _record(chat: ChatFormat, told: Told) -> PairRecord:
    turns = told.turns
    users = [f"{told.document}\n\n{turns[0].instruction}", *(turn.instruction for turn in turns[1:])]
    chosen = [chat.response_ids(turn.chosen) for turn in turns]
    rejected = [chat.response_ids(turn.rejected) for turn in turns]
    known = [turn.chunk for turn in turns if turn.chunk is not None]
    places = [(told.document.find(chunk), told.document.find(chunk) + len(chunk)) for chunk in known]
    places = [(start, end) if start >= 0 else (0, 0) for start, end in places]
    long = chat.long_pair(users, chosen, rejected, places if len(known) == len(turns) else None)
    return PairRecord(
        doc_id=told.doc_id,
        trunk_ids=as_ids(long.trunk_ids),
        chosen_ids=as_ids(long.chosen_ids),
        rejected_ids=as_ids(long.rejected_ids),
        chosen_spans=as_spans(long.chosen_spans),
        rejected_spans=as_spans(long.rejected_spans),
        nll_ignore_spans=as_spans(long.nll_ignore_spans),
        ref_chosen_logps=_logps(chat, chosen, [turn.chosen_logp for turn in turns]),
        ref_rejected_logps=_logps(chat, rejected, [turn.rejected_logp for turn in turns]),
        ref_context="short",
        chunk_spans=None if long.chunk_spans is None else as_spans(long.chunk_spans),
        short_prompt_ids=_short_prompts(chat, told) if told.short_prompts else None,
    )


def _short_prompts(chat: ChatFormat, told: Told) -> tuple[np.ndarray, ...]:
    return tuple(as_ids(chat.prompt(f"{turn.chunk}\n\n{turn.instruction}")) for turn in told.turns)


def _logps(chat: ChatFormat, answers: list[list[int]], means: list[float]) -> tuple[np.ndarray, ...]:
    """Values on a slope around the mean, so that every token has its own."""
    counts = [len(chat.finished(ids)) for ids in answers]
    return tuple(
        (mean * (np.arange(count) + 0.5) * 2 / count).astype(np.float32)
        for mean, count in zip(means, counts, strict=True)
    )
