"""Stage 3: the model answers each instruction twice: with the chunk (chosen), with the whole document (rejected).

The long prompt of a turn holds the document and this turn's instruction, without earlier turns: the turns of a document
are independent requests that share their beginning.
"""

from collections import Counter
from functools import partial
from typing import Any

from nemo_longpo.errors import InputError

from ..chat.format import ChatFormat
from ..engines.engine import Completion, Sampling
from ..pairs import read_chunks, seed_for
from ..runner import PartResult, Row, Tick
from ..settings import RespondSettings
from . import model_stage, registry


def run_respond(call: registry.StageCall) -> registry.Report:
    """Add both answers, their token ids and finish reasons to every turn.

    Raises InputError if a record has no chunks or no instructions, or a prompt and its answer do not fit.
    """
    settings = call.settings(RespondSettings)
    work = partial(_respond_rows, settings=settings)
    return model_stage.run_with_model(call, settings, work, check=lambda row, _: (read_chunks(row), _instructions(row)))


def _respond_rows(
    rows: list[Row], tick: Tick, loaded: model_stage.LoadedModel, settings: RespondSettings
) -> PartResult:
    chat, prompts = loaded.chat, loaded.prompts
    requests, seeds = [], []
    for row in rows:
        for index, (chunk, instruction) in enumerate(zip(read_chunks(row), _instructions(row), strict=True)):
            short = chat.prompt(prompts.ask_about(chunk, instruction))
            loaded.check_short(short, settings.max_new_tokens, row.where)
            long = chat.prompt(prompts.ask_about(row.record["document"], instruction))
            loaded.check_long(len(long), settings.max_new_tokens, row.where)
            requests += [short, long]
            seeds += [seed_for(settings.seed, name, row.record["doc_id"], index) for name in ("chosen", "rejected")]
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        stop_ids=chat.stop_ids,
        temperature=settings.temperature,
        top_p=settings.top_p,
    )
    completions = iter(loaded.engine.generate(requests, sampling, seeds, tick))
    records = []
    for row in rows:
        turns = [
            turn | _answer("chosen", next(completions), chat) | _answer("rejected", next(completions), chat)
            for turn in row.record["turns"]
        ]
        records.append(row.record | {"turns": turns})
    counts = Counter(documents_in=len(rows), documents_out=len(rows), turns_out=len(requests) // 2)
    return PartResult(records, counts)


def _answer(name: str, completion: Completion, chat: ChatFormat) -> dict[str, Any]:
    """Return the fields of an answer. It ends before its first special token, which is recorded; later text is dropped
    but counts for the finish reason. Special tokens that the model spelled out are recorded too, and whether the chat
    template would write the answer otherwise."""
    ids = chat.special.in_front_of(completion.ids)
    text, cut = chat.text(ids), len(ids) < len(completion.ids)
    answer: dict[str, Any] = {name: text, f"{name}_token_ids": ids, f"{name}_finish_reason": completion.finish_reason}
    if cut:
        answer[f"{name}_cut_at"] = chat.tokenizer.convert_ids_to_tokens(completion.ids[len(ids)])
    if spelled := chat.special.within(ids, text):
        answer[f"{name}_special_tokens"] = spelled
    if chat.rewrites(text):
        answer[f"{name}_rewritten"] = True
    return answer


def _instructions(row: Row) -> list[str]:
    for index, turn in enumerate(row.record["turns"]):
        if not isinstance(turn.get("instruction"), str) or not turn["instruction"].strip():
            raise InputError(
                f"{row.where}: field 'turns[{index}].instruction' must be non-empty text; run `longpo data instruct`"
            )
    return [turn["instruction"] for turn in row.record["turns"]]
