"""Stage 1: documents of the right length, each with up to K chunks that fit the short-context model."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.shards.fingerprint import read_model_config

from ..chat.format import ChatFormat
from ..corpus.chunking import chunk_document, draw_chunks
from ..corpus.source import CorpusSource
from ..engines.base import Tick
from ..model import load_chat, tokenizer_identity
from ..runner.rows import Row
from ..runner.stage import PartResult, Process, Stage, run_stage
from ..seeds import seed_for
from ..settings import ChunkSettings, CpuPlacement


def run_chunk(
    inputs: list[str], model: Path, output: Path, settings: ChunkSettings, placement: CpuPlacement
) -> dict[str, int]:
    """Write {"doc_id", "document", "turns": [{"chunk"}]} records. Raises InputError."""
    _check(settings, model)
    return run_stage(
        Stage(
            name="chunk",
            source=CorpusSource(inputs, rows_per_part=placement.part_size),
            output=output,
            settings=settings.recorded() | tokenizer_identity(load_chat(model)),
            make_process=partial(_make_process, model, settings),
            placement=placement,
            num_workers=placement.num_workers,
        )
    )


def _make_process(model: Path, settings: ChunkSettings) -> Process:
    return partial(_chunk_rows, chat=load_chat(model), settings=settings)


def _check(settings: ChunkSettings, model: Path) -> None:
    context = read_model_config(model).get("max_position_embeddings")
    if context is not None and settings.chunk_tokens >= context:
        raise InputError(
            f"chunk_tokens {settings.chunk_tokens} leaves no room in the context of {model}, {context} tokens; "
            "make it smaller by the length of an instruction and an answer"
        )
    longest = settings.max_document_tokens
    if longest is not None and longest < settings.min_document_tokens:
        raise InputError(f"max_document_tokens {longest} is below min_document_tokens {settings.min_document_tokens}")


def _chunk_rows(rows: list[Row], tick: Tick, chat: ChatFormat, settings: ChunkSettings) -> PartResult:
    counts: Counter[str] = Counter(documents_in=len(rows))
    records: list[dict[str, Any]] = []
    for row in rows:
        text, doc_id = row.record["document"], row.record["doc_id"]
        token_ends = chat.token_ends(text)
        if len(token_ends) < settings.min_document_tokens:
            counts["dropped_too_short"] += 1
        elif settings.max_document_tokens is not None and len(token_ends) > settings.max_document_tokens:
            counts["dropped_too_long"] += 1
        else:
            chunks = chunk_document(text, token_ends, chat.content_length, settings.chunk_tokens)
            drawn = draw_chunks(chunks, settings.chunks_per_document, seed_for(settings.seed, "chunk", doc_id))
            records.append({"doc_id": doc_id, "document": text, "turns": [{"chunk": chunk} for chunk in drawn]})
            counts.update(documents_out=1, turns_out=len(drawn), tokens=len(token_ends))
    return PartResult(records, counts)
