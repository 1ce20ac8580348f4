"""Convert published tokenised datasets to tokenised records: check, repair where that is safe, and count.

Refused documents are listed with their reasons in `refused.json`. Reference log-probs are never taken from a dataset:
`score` computes them.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

from ..model import load_chat, tokenizer_identity
from ..published import conversation, document, source
from ..runner import PartResult, PartsJob, Process, Row, Tick, is_given, run_parts
from ..settings import CpuWorkShare, ImportSettings, TemplateKwargs
from .registry import Report, StageCall


def run_import_hf(call: StageCall) -> Report:
    """Write tokenised records (see encoded.py) for `score`. Raises InputError if an input cannot be read."""
    settings, share = call.settings(ImportSettings), call.settings(CpuWorkShare)
    if is_given(share, "part_bytes"):
        raise InputError("import-hf does not know a row's length before it reads it; give part_size, not part_bytes")
    rows = source.PublishedSource(
        list(call.inputs), split=settings.split, id_field=settings.id_field, rows_per_part=share.part_size
    )
    told = call.settings(TemplateKwargs).values()
    ModelConfig.read(call.model).require("max_position_embeddings", "vocab_size")
    report = run_parts(
        PartsJob(
            name="import-hf",
            source=rows,
            output=call.output,
            settings=settings.recorded() | tokenizer_identity(load_chat(call.model, template_kwargs=told)),
            make_process=partial(_make_process, call.model, call.output, settings, told),
            share=share,
            num_workers=share.num_workers,
        )
    )
    if report:
        source.Ledger(call.output).close(len(rows.rows_in_parts))
    return report


def _make_process(model: Path, output: Path, settings: ImportSettings, told: Mapping[str, Any]) -> Process:
    positions, vocabulary = ModelConfig.read(model).require("max_position_embeddings", "vocab_size")
    template = conversation.template_ids(load_chat(model, template_kwargs=told), vocabulary)
    limits = document.Limits(conversation=settings.max_tokens, reference=positions)
    return partial(_import_rows, template=template, limits=limits, ledger=source.Ledger(output))


def _import_rows(
    rows: list[Row], tick: Tick, template: conversation.TemplateIds, limits: document.Limits, ledger: source.Ledger
) -> PartResult:
    counts: Counter[str] = Counter(documents_in=len(rows), documents_out=0)
    records: list[dict[str, object]] = []
    taken, refused = [], []
    for row in rows:
        doc_id = row.record["doc_id"]
        try:
            found = document.read_document(row.record["columns"], template, limits)
        except conversation.Refused as fault:
            counts[f"refused_{fault.reason}"] += 1
            refused.append(source.Refusal(doc_id, row.where, fault.reason, fault.detail))
            continue
        records.append({"doc_id": doc_id} | found.fields)
        taken.append((doc_id, row.where))
        counts.update(documents_out=1, turns_out=found.turns, turns_cut=found.turns_cut)
        counts.update(f"repaired_{name}" for name in found.repairs)
    ledger.note(rows[0].record["part"], taken, refused)
    return PartResult(records, counts)
