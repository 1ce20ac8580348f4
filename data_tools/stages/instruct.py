"""Stage 2: the model writes instructions about each chunk; one of the pool is drawn."""

import random
import re
from collections import Counter
from functools import partial
from typing import Any

from nemo_longpo.errors import InputError

from ..chat.format import ChatFormat
from ..engines.base import Completion, Sampling, Tick
from ..runner.rows import Row
from ..runner.stage import PartResult
from ..seeds import seed_for
from ..settings import InstructSettings
from .with_model import Bench, ModelStage, check_short, run_with_model

_NUMBERED = re.compile(r"^\s*(?:\*\*)?\(?\d{1,2}[.):](?:\*\*)?\s+(.*\S)\s*$")
_BULLET = re.compile(r"^\s*[-*•]\s+(.*\S)\s*$")


def run_instruct(settings: InstructSettings, where: ModelStage) -> dict[str, int]:
    """Add "instruction" and "instruction_pool" to every turn; drop turns without a usable one. Raises InputError."""
    return run_with_model("instruct", where, settings, partial(_instruct_rows, settings=settings))


def parse_instructions(text: str, count: int, *, truncated: bool) -> list[str]:
    """At most `count` instructions from an answer: numbered lines, else bullets, else lines; with count 1, all of it.

    The last line of a truncated answer is incomplete and left out.
    """
    if count == 1:
        return [text.strip()] if text.strip() else []
    lines = text.splitlines()
    if truncated:
        lines = lines[:-1]
    for pattern in (_NUMBERED, _BULLET, re.compile(r"^\s*(.*\S)\s*$")):
        found = [match[1].strip("*").strip() for line in lines if (match := pattern.match(line))]
        if found:
            return list(dict.fromkeys(item for item in found if item))[:count]
    return []


def _instruct_rows(rows: list[Row], tick: Tick, bench: Bench, settings: InstructSettings) -> PartResult:
    chat = bench.chat
    requests, seeds = [], []
    for row in rows:
        for index, chunk in enumerate(chunks_of(row)):
            prompt = chat.prompt(bench.prompts.request_instructions(chunk, settings.pool_size))
            check_short(bench.engine, prompt, settings.max_new_tokens, row.where)
            requests.append(prompt)
            seeds.append(seed_for(settings.seed, "instruct", row.record["doc_id"], index))
    sampling = Sampling(settings.max_new_tokens, chat.stop_ids, settings.temperature, settings.top_p)
    completions = iter(bench.engine.generate(requests, sampling, seeds, tick))
    counts: Counter[str] = Counter(documents_in=len(rows), turns_in=len(requests))
    records: list[dict[str, Any]] = []
    for row in rows:
        turns = [
            turn | drawn
            for index, turn in enumerate(row.record["turns"])
            if (drawn := _draw(next(completions), chat, settings, f"{row.record['doc_id']}\x1f{index}"))
        ]
        counts.update(turns_out=len(turns), dropped_no_instruction=len(row.record["turns"]) - len(turns))
        if turns:
            records.append(row.record | {"turns": turns})
    counts["documents_out"] = len(records)
    return PartResult(records, counts)


def _draw(completion: Completion, chat: ChatFormat, settings: InstructSettings, name: str) -> dict[str, Any]:
    """{"instruction", "instruction_pool"}, or {} if the answer holds none."""
    text = chat.text(chat.generated_response(completion.ids))
    pool = parse_instructions(text, settings.pool_size, truncated=completion.finish_reason == "length")
    if not pool:
        return {}
    return {"instruction": random.Random(seed_for(settings.seed, "draw", name)).choice(pool), "instruction_pool": pool}


def chunks_of(row: Row) -> list[str]:
    """The chunks of a record from `chunk`. Raises InputError naming the field."""
    for name in ("doc_id", "document"):
        if not isinstance(row.record.get(name), str) or not row.record[name].strip():
            raise InputError(f"{row.where}: field '{name}' must be non-empty text")
    turns = row.record.get("turns")
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{row.where}: field 'turns' must be a list with at least one turn")
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("chunk"), str) or not turn["chunk"].strip():
            raise InputError(f"{row.where}: field 'turns[{index}].chunk' must be non-empty text")
    return [turn["chunk"] for turn in turns]
