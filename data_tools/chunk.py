"""Stage 1: documents of the right length, each with up to K chunks that fit the short-context model."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.shards.fingerprint import read_model_config

from .chat import ChatFormat
from .chunking import chunk_document, draw_chunks
from .corpus import CorpusSource
from .model import load_chat, tokenizer_identity
from .options import Placement
from .rows import Row
from .seeds import seed_for
from .stage import PartResult, Process, Stage, Tick, run_stage


@dataclass(frozen=True)
class ChunkSettings:
    """Lengths in tokens of the model. Documents shorter or longer than the window are left out, and counted."""

    chunk_tokens: int = 32768
    chunks_per_document: int = 4
    min_document_tokens: int = 1
    max_document_tokens: int | None = None
    seed: int = 0


def run_chunk(
    inputs: list[str], model: Path, output: Path, settings: ChunkSettings, placement: Placement
) -> dict[str, int]:
    """Write {"doc_id", "document", "turns": [{"chunk"}]} records. Raises InputError."""
    _check(settings, model)
    chat = load_chat(model)

    def make_process() -> Process:
        return lambda rows, tick: _chunk_rows(rows, tick, chat, settings)

    return run_stage(
        Stage(
            name="chunk",
            source=CorpusSource(inputs, rows_per_part=placement.part_size),
            output=output,
            settings=asdict(settings) | tokenizer_identity(chat),
            make_process=make_process,
            rank=placement.rank,
            world_size=placement.world_size,
        )
    )


def _check(settings: ChunkSettings, model: Path) -> None:
    for name in ("chunk_tokens", "chunks_per_document"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(settings, name)} must be at least 1")
    context = read_model_config(model).get("max_position_embeddings")
    if context is not None and settings.chunk_tokens >= context:
        raise InputError(
            f"--chunk-tokens {settings.chunk_tokens} leaves no room in the context of {model}, {context} tokens; "
            "make it smaller by the length of an instruction and an answer"
        )
    longest = settings.max_document_tokens
    if longest is not None and longest < settings.min_document_tokens:
        raise InputError(f"--max-document-tokens {longest} is below --min-document-tokens")


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
