"""Stage 6: scored pairs as shards that the trainer maps into memory."""

from dataclasses import asdict
from pathlib import Path

from nemo_longpo import live_status, status_bar
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.shards import manifest, reader, schema, writer
from nemo_longpo.typed_fields import build

from .. import encoded, options, prompts
from ..chat.format import as_ids, as_spans
from ..model import load_chat, model_identity, rendering_identity, tokenizer_identity
from ..runner.rows import REPAIR, SETTINGS_NAME, PartsSource
from ..settings import EngineSettings, PackSettings, TemplateKwargs, TemplateSettings
from .registry import Report, StageCall


def run_pack(call: StageCall) -> Report:
    """Write shards from the output of `score`; the report says how many documents they hold.

    The model's weights, tokenizer and template must be those that scored the pairs. Raises InputError if one of
    them differs, or if the pairs are not the output of `score`.
    """
    pairs, model, output, settings = call.input, call.model, call.output, call.settings(PackSettings)
    source = PartsSource(pairs)
    history = source.history()
    if next(reversed(history), None) != "score":
        raise InputError(f"{pairs} was not written by `longpo data score`; score the pairs first, then pack them")
    scored, where = history["score"], str(pairs / SETTINGS_NAME)
    for name, kind in _RECORDED.items():
        if not isinstance(scored.get(name), kind):
            raise InputError(f"{where}: field 'settings.{name}' is missing or of another kind; {REPAIR}")
    told = TemplateKwargs().or_recorded({"score": scored})
    chat = load_chat(model, options.settings_from(TemplateSettings, scored).day(), told)
    engine = options.settings_from(EngineSettings, scored["engine"])
    found = tokenizer_identity(chat) | rendering_identity(chat) | {"model": model_identity(model, engine)}
    _check_same(scored, found, model)
    (vocabulary,) = ModelConfig.read(model).require("vocab_size")
    provenance = manifest.Provenance(
        tokenizer_fingerprint=scored["tokenizer_fingerprint"],
        chat_template_hash=scored["chat_template_hash"],
        vocab_size=vocabulary,
        reference=build(manifest.ReferenceModel, scored["model"], where, REPAIR),
        ref_context=scored["ref_context"],
        generation=history | {"pack": settings.recorded()},
    )
    documents = sum(source.rows_in_parts)
    if _holds(output, provenance, documents):
        return {"documents_out": documents}
    if settings.dry_run:
        return {}
    wording = prompts.prompts_from_dict(scored["prompts"], where)
    encoder = encoded.PairEncoder(chat, wording, provenance.vocab_size)
    with (
        live_status.StatusFile(output, "pack", whole=True, total=documents, unit="document") as status,
        writer.ShardWriter(output, provenance, **settings.recorded()) as shards,
        status_bar.StatusBar(status, total=documents, desc="pack", unit="doc") as bar,
    ):
        for row in source.rows():
            shards.add(_record(encoder.encode(row), provenance.ref_context), where=row.where)
            bar.update()
    return {"documents_out": documents}


_RECORDED = {
    "engine": dict,
    "prompts": dict,
    "model": dict,
    "tokenizer_fingerprint": str,
    "chat_template_hash": str,
    "ref_context": str,
}
"""The settings that `score` records and packing needs."""


def _holds(output: Path, provenance: manifest.Provenance, documents: int) -> bool:
    """Return whether the output holds these shards already. Raises InputError if it holds others, or damaged ones."""
    if not (output / manifest.MANIFEST_NAME).is_file():
        return False
    stored = reader.ShardReader(output).manifest
    expected = asdict(provenance) | {"documents": documents}
    found = {name: value for name, value in asdict(stored).items() if name in expected}
    changes = options.differences(found | {"documents": stored.counts.documents}, expected)
    if changes:
        raise InputError(f"{output} already holds other shards: {'; '.join(changes)}; give another output or remove it")
    return True


def _record(pair: encoded.EncodedPair, ref_context: str) -> schema.PairRecord:
    long = pair.long()
    return schema.PairRecord(
        doc_id=pair.doc_id,
        trunk_ids=as_ids(long.trunk_ids),
        chosen_ids=as_ids(long.chosen_ids),
        rejected_ids=as_ids(long.rejected_ids),
        chosen_spans=as_spans(long.chosen_spans),
        rejected_spans=as_spans(long.rejected_spans),
        nll_ignore_spans=as_spans(long.nll_ignore_spans),
        ref_chosen_logps=pair.logps("chosen"),
        ref_rejected_logps=pair.logps("rejected"),
        ref_context=ref_context,
        chunk_spans=None if long.chunk_spans is None else as_spans(long.chunk_spans),
        short_prompt_ids=tuple(map(as_ids, pair.short_prompts())),
    )


_NAMES = {
    "tokenizer_fingerprint": "tokenizer",
    "chat_template_hash": "chat template",
    "chat_pieces_hash": "text around the messages",
    "model": "model",
}


def _check_same(scored: dict[str, object], found: dict[str, object], model: Path) -> None:
    for key, name in _NAMES.items():
        if scored.get(key, found[key]) != found[key]:
            raise InputError(
                f"the pairs were scored with {name} {scored[key]}, but {model} has {found[key]}; give the model that "
                "scored them, or score them again"
            )
