"""Stage 6: scored pairs as shards that the trainer maps into memory."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_longpo.errors import InputError
from nemo_longpo.shards.fingerprint import read_model_config
from nemo_longpo.shards.manifest import Provenance, ReferenceModel
from nemo_longpo.shards.schema import PairRecord
from nemo_longpo.shards.writer import ShardWriter

from ..chat.format import ChatFormat, as_ids, as_spans
from ..chat.prompts import Prompts, prompts_from_dict
from ..model import load_chat, model_identity, tokenizer_identity
from ..pairs import answer_ids, check_answers, parse_pair, turn_logps
from ..runner.rows import PartsSource, Row
from ..settings import EngineSettings, PackSettings
from .score import users_of


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
    documents = sum(source.rows_in_parts)
    with (
        ShardWriter(output, provenance, **settings.recorded()) as writer,
        tqdm(total=documents, desc="pack", unit="doc") as bar,
    ):
        for row in source.rows():
            writer.add(_record(row, chat, prompts, provenance), where=row.where)
            bar.update()
    return documents


def _record(row: Row, chat: ChatFormat, prompts: Prompts, provenance: Provenance) -> PairRecord:
    pair = parse_pair(row)
    check_answers(pair, row.where)
    chosen, rejected = (
        answer_ids(chat, pair, name, provenance.vocab_size, row.where) for name in ("chosen", "rejected")
    )
    long = chat.long_pair(users_of(pair, prompts), chosen, rejected)
    turns = range(len(pair.turns))
    return PairRecord(
        doc_id=pair.doc_id,
        trunk_ids=as_ids(long.trunk_ids),
        chosen_ids=as_ids(long.chosen_ids),
        rejected_ids=as_ids(long.rejected_ids),
        chosen_spans=as_spans(long.chosen_spans),
        rejected_spans=as_spans(long.rejected_spans),
        nll_ignore_spans=as_spans(long.nll_ignore_spans),
        ref_chosen_logps=tuple(turn_logps(row, index, "chosen") for index in turns),
        ref_rejected_logps=tuple(turn_logps(row, index, "rejected") for index in turns),
        ref_context=provenance.ref_context,
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
