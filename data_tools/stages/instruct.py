"""Stage 2: the model writes instructions about each chunk; one of the pool is drawn."""

import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

from nemo_longpo.errors import InputError

from ..engines.engine import Completion, Sampling
from ..pairs import read_chunks, seed_for
from ..prompts import Prompts
from ..quality.usable_requests import Pool, Wording, read_requests
from ..runner import PartResult, Row, Tick
from ..settings import InstructSettings
from . import model_stage, registry

_TELLING_TURNS = 8  # after so many answers without one instruction, give up: later ones will have none either
_KEPT_CHARACTERS, _KEPT_ITEM_CHARACTERS = 4000, 400  # of an answer and of an item, for people to read
_LONGEST_REQUEST = 400  # characters, if the engine can enforce a form of answers


@dataclass(frozen=True)
class _Answer:
    """What the model wrote about one chunk, and the requests in it."""

    text: str
    pool: Pool

    def kept(self) -> dict[str, Any]:
        """Return what a row keeps beside the requests."""
        items = [{"reason": reason, "text": item[:_KEPT_ITEM_CHARACTERS]} for reason, item in self.pool.rejected]
        return {"instruction_answer": self.text[:_KEPT_CHARACTERS], "instruction_rejected": items}


def run_instruct(call: registry.StageCall) -> registry.Report:
    """Add "instruction" and "instruction_pool" to every turn, and the answer that they were read from; drop turns
    without a usable one. Raises InputError if no turn is left, or a chunk does not fit."""
    settings = call.settings(InstructSettings)
    unread: list[_Answer] = []
    work = partial(_instruct_rows, settings=settings, unread=unread)
    writes_json = settings.structured_output and settings.pool_size > 1
    report = model_stage.run_with_model(
        call, settings, work, check=lambda row, _: read_chunks(row), writes_json=writes_json
    )
    if report and not report.get("turns_out"):
        counts = {name: count for name, count in report.items() if name.startswith("rejected_")}
        first = unread[0].text if unread else ""
        raise InputError(f"{call.output}: {_unusable(report['turns_in'], first, Counter(counts))}")
    return report


def _instruct_rows(
    rows: list[Row], tick: Tick, loaded: model_stage.LoadedModel, settings: InstructSettings, unread: list[_Answer]
) -> PartResult:
    """Write the instructions of a part's rows; add answers without one to `unread`."""
    chat = loaded.chat
    as_json = settings.structured_output and loaded.engine.writes_json
    as_json = as_json and loaded.prompts.may_ask_for_json(settings.pool_size)
    ask = partial(loaded.prompts.request_instructions, count=settings.pool_size, as_json=as_json)
    chunks, requests, seeds = [], [], []
    for row in rows:
        for index, chunk in enumerate(read_chunks(row)):
            prompt = chat.prompt(ask(chunk))
            loaded.check_short(prompt, settings.max_new_tokens, row.where)
            chunks.append(chunk)
            requests.append(prompt)
            seeds.append(seed_for(settings.seed, "instruct", row.record["doc_id"], index))
    schema = _list_of_requests(settings.pool_size) if as_json else None
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        stop_ids=chat.stop_ids,
        temperature=settings.temperature,
        top_p=settings.top_p,
        json_schema=schema,
    )
    completions = loaded.engine.generate(requests, sampling, seeds, tick)
    wording = Wording(ask(""))
    answers = []
    for done, chunk in zip(completions, chunks, strict=True):
        text, cut = _text(done, loaded), done.finish_reason == "length"
        pool = read_requests(text, settings.pool_size, chunk, wording, truncated=cut, check=settings.check_requests)
        answers.append(_Answer(text, pool))
    return _part(rows, answers, loaded.prompts, settings, unread)


def _part(
    rows: list[Row], answers: list[_Answer], prompts: Prompts, settings: InstructSettings, unread: list[_Answer]
) -> PartResult:
    without = [answer for answer in answers if not answer.pool.requests]
    unread += without
    rejected = sum((answer.pool.counts() for answer in answers), Counter[str]())
    if len(answers) >= _TELLING_TURNS and len(without) == len(answers):
        message = _unusable(len(answers), without[0].text, rejected)
        raise InputError(f"{rows[0].where}: {message}; finished parts are kept")
    left = iter(answers)
    mine = [[next(left) for _ in row.record["turns"]] for row in rows]
    changed = (_with_instructions(row, found, prompts, settings) for row, found in zip(rows, mine, strict=True))
    records = [record for record in changed if record["turns"]]
    counts = Counter(documents_in=len(rows), documents_out=len(records), turns_in=len(answers))
    counts["dropped_no_instruction"] = len(without)
    counts["turns_out"] = len(answers) - len(without)
    return PartResult(records, counts + rejected)


def _list_of_requests(count: int) -> dict[str, Any]:
    """The JSON schema of an answer."""
    request = {"type": "string", "minLength": 1, "maxLength": _LONGEST_REQUEST}
    return {"type": "array", "items": request, "minItems": count, "maxItems": count}


def _text(completion: Completion, loaded: model_stage.LoadedModel) -> str:
    """Return an answer's text up to its first special token; what follows is no instruction."""
    chat = loaded.chat
    return chat.text(chat.special.in_front_of(completion.ids))


def _with_instructions(
    row: Row, answers: list[_Answer], prompts: Prompts, settings: InstructSettings
) -> dict[str, Any]:
    """Return the record with one instruction drawn per turn; turns without a pool are kept separately."""
    turns, without = [], []
    for index, (turn, answer) in enumerate(zip(row.record["turns"], answers, strict=True)):
        if not (pool := answer.pool.requests):
            without.append({"turn": index} | answer.kept())
            continue
        name = f"{row.record['doc_id']}\x1f{index}"
        instruction = random.Random(seed_for(settings.seed, "draw", name)).choice(pool)
        rng = random.Random(seed_for(settings.seed, "lead-in", name))
        if rng.random() < settings.lead_in_probability:
            instruction = prompts.with_lead_in(instruction, rng)
        turns.append(turn | {"instruction": instruction, "instruction_pool": pool} | answer.kept())
    return row.record | {"turns": turns} | ({"turns_without_instruction": without} if without else {})


def _unusable(answers: int, first: str, rejected: Counter[str]) -> str:
    what = "the model's only answer, which" if answers == 1 else f"any of the model's {answers} answers; the first"
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(rejected.items()))
    items = f" (items left out: {reasons})" if reasons else ""
    return (
        f"no usable instruction could be read from {what} begins with {first[:160]!r}{items}; check that the "
        "model is tuned for chat, or give other words with --prompts"
    )
