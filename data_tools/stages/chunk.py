"""Stage 1: documents of the right length, each with up to K chunks that fit the short-context model.

A process holds one part at a time. Beside the libraries, its memory is about 5 bytes per character of the part's
documents (up to 20 if they hold characters beyond Latin-1) and 0.7 KB per token of one chunk, whatever the size of the
corpus. So `part_bytes`, or the longest document, bounds it; benchmarks/data/corpus_memory.py measures it.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

from ..chat.format import ChatFormat
from ..corpus import chunking, segmentation, source
from ..model import load_chat, tokenizer_identity
from ..pairs import seed_for
from ..runner import PartResult, PartsJob, Process, Row, Tick, run_parts
from ..settings import ChunkSettings, CpuWorkShare, TemplateKwargs
from .registry import Report, StageCall


def run_chunk(call: StageCall) -> Report:
    """Write {"doc_id", "document", "turns": [{"chunk"}]} records. Raises InputError if no document is left."""
    settings, share = call.settings(ChunkSettings), call.settings(CpuWorkShare)
    _check(settings, call.model)
    told = call.settings(TemplateKwargs).values()
    fields = source.Fields(settings.text_field, settings.id_field)
    report = run_parts(
        PartsJob(
            name="chunk",
            source=source.CorpusSource(
                list(call.inputs), rows_per_part=share.part_size, bytes_per_part=share.part_bytes, fields=fields
            ),
            output=call.output,
            settings=settings.recorded() | tokenizer_identity(load_chat(call.model, template_kwargs=told)),
            make_process=partial(_make_process, call.model, settings, told),
            share=share,
            num_workers=share.num_workers,
        )
    )
    if report and not report.get("documents_out"):
        raise InputError(
            f"none of the {report['documents_in']} documents is between min_document_tokens "
            f"{settings.min_document_tokens} and max_document_tokens {settings.max_document_tokens}: "
            f"{report.get('dropped_too_short', 0)} are too short, {report.get('dropped_too_long', 0)} too long; "
            f"change the limits and give another output than {call.output}, which has no documents in its parts"
        )
    return report


def _make_process(model: Path, settings: ChunkSettings, told: Mapping[str, Any]) -> Process:
    return partial(_chunk_rows, chat=load_chat(model, template_kwargs=told), settings=settings)


def _check(settings: ChunkSettings, model: Path) -> None:
    context = ModelConfig.read(model).max_position_embeddings
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
    records: list[dict[str, object]] = []
    for row in rows:
        text, doc_id = row.record["document"], row.record["doc_id"]
        ends = chunking.token_ends(chat.token_ends, text)
        if len(ends) < settings.min_document_tokens:
            counts["dropped_too_short"] += 1
        elif settings.max_document_tokens is not None and len(ends) > settings.max_document_tokens:
            counts["dropped_too_long"] += 1
        else:
            domain = segmentation.domain_of(doc_id, text) if settings.domain == "auto" else settings.domain
            chunks = chunking.chunk_document(text, ends, chat.content_length, settings.chunk_tokens, domain)
            drawn = chunking.draw_chunks(chunks, settings.chunks_per_document, seed_for(settings.seed, "chunk", doc_id))
            records.append({"doc_id": doc_id, "document": text, "turns": [{"chunk": chunk} for chunk in drawn]})
            counts.update({"documents_out": 1, f"{domain}_out": 1, "turns_out": len(drawn), "tokens": len(ends)})
            counts["special_tokens_as_text"] += chat.special.spelled_in(text)
    return PartResult(records, counts)
