"""Stage 6: scored pairs as shards that the trainer maps into memory."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_longpo.errors import InputError
from nemo_longpo.shards.fingerprint import read_model_config
from nemo_longpo.shards.manifest import Provenance, ReferenceModel
from nemo_longpo.shards.schema import PairRecord
from nemo_longpo.shards.writer import ShardWriter

from ..chat.format import as_ids, as_spans
from ..chat.prompts import prompts_from_dict
from ..encoded import EncodedPair, PairEncoder
from ..model import load_chat, model_identity, tokenizer_identity
from ..runner.rows import PartsSource
from ..settings import EngineSettings, PackSettings


def run_pack(pairs: Path, model: Path, output: Path, settings: PackSettings) -> int:
    """Write shards from the output of `score`; returns how many documents they hold.

    The model's weights, tokenizer and template must be those that scored the pairs. Raises InputError.
    """
    source = PartsSource(pairs)
    history = source.history()
    if next(reversed(history), None) != "score":
        raise InputError(f"{pairs} was not written by `longpo data score`; score the pairs first, then pack them")
    scored = history["score"]
    chat = load_chat(model)
    engine = EngineSettings(**scored["engine"])
    _check_same(scored, tokenizer_identity(chat) | {"model": model_identity(model, engine)}, model)
    provenance = Provenance(
        tokenizer_fingerprint=scored["tokenizer_fingerprint"],
        chat_template_hash=scored["chat_template_hash"],
        vocab_size=read_model_config(model)["vocab_size"],
        reference=ReferenceModel(**scored["model"]),
        ref_context=scored["ref_context"],
        generation=history,
    )
    prompts = prompts_from_dict(scored["prompts"], f"{pairs}/settings.json")
    encoder = PairEncoder(chat, prompts, provenance.vocab_size)
    documents = sum(source.rows_in_parts)
    with (
        ShardWriter(output, provenance, **settings.recorded()) as writer,
        tqdm(total=documents, desc="pack", unit="doc") as bar,
    ):
        for row in source.rows():
            writer.add(_record(encoder.encode(row), provenance.ref_context), where=row.where)
            bar.update()
    return documents


def _record(pair: EncodedPair, ref_context: str) -> PairRecord:
    long = pair.long()
    return PairRecord(
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
    )


_NAMES = {
    "tokenizer_fingerprint": "tokenizer",
    "chat_template_hash": "chat template",
    "model": "model",
}


def _check_same(scored: dict[str, Any], found: dict[str, Any], model: Path) -> None:
    for key, name in _NAMES.items():
        if scored[key] != found[key]:
            raise InputError(
                f"the pairs were scored with {name} {scored[key]}, but {model} has {found[key]}; give the model that "
                "scored them, or score them again"
            )
