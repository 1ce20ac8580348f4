"""Stage 2: the model writes instructions about each chunk; one of the pool is drawn."""

import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from nemo_longpo.errors import InputError

from ..chat.format import ChatFormat
from ..chat.prompts import Prompts
from ..engines.base import Completion, Sampling, Tick
from ..quality.instructions import parse_instructions
from ..runner.rows import Row
from ..runner.stage import PartResult
from ..seeds import seed_for
from ..settings import InstructSettings
from .with_model import Bench, ModelStage, check_short, run_with_model

_TELLING_TURNS = 8  # so many answers without one instruction: the next ones will have none either


def run_instruct(settings: InstructSettings, where: ModelStage) -> dict[str, int]:
    """Add "instruction" and "instruction_pool" to every turn; drop turns without a usable one. Raises InputError."""
    unread: list[str] = []
    report = run_with_model("instruct", where, settings, partial(_instruct_rows, settings=settings, unread=unread))
    if report and not report.get("turns_out"):
        raise InputError(f"{where.output}: {_unusable(report['turns_in'], (unread or [''])[0])}")
    return report


def _instruct_rows(
    rows: list[Row], tick: Tick, bench: Bench, settings: InstructSettings, unread: list[str]
) -> PartResult:
    """Adds to `unread` the answers in which there was no instruction."""
    chat = bench.chat
    requests, seeds = [], []
    for row in rows:
        for index, chunk in enumerate(chunks_of(row)):
            prompt = chat.prompt(bench.prompts.request_instructions(chunk, settings.pool_size))
            check_short(bench.engine, prompt, settings.max_new_tokens, row.where)
            requests.append(prompt)
            seeds.append(seed_for(settings.seed, "instruct", row.record["doc_id"], index))
    sampling = Sampling(settings.max_new_tokens, chat.stop_ids, settings.temperature, settings.top_p)
    completions = bench.engine.generate(requests, sampling, seeds, tick)
    texts = [(_text(done, chat), done.finish_reason == "length") for done in completions]
    pools = [parse_instructions(text, settings.pool_size, truncated=cut) for text, cut in texts]
    unread += [text for (text, _), pool in zip(texts, pools, strict=True) if not pool]
    if len(pools) >= _TELLING_TURNS and not any(pools):
        raise InputError(f"{rows[0].where}: {_unusable(len(pools), unread[-len(pools)])}; finished parts are kept")
    records = _with_instructions(rows, iter(pools), bench.prompts, settings)
    counts = Counter(documents_in=len(rows), documents_out=len(records), turns_in=len(pools))
    counts["dropped_no_instruction"] = sum(not pool for pool in pools)
    counts["turns_out"] = len(pools) - counts["dropped_no_instruction"]
    return PartResult(records, counts)


def _text(completion: Completion, chat: ChatFormat) -> str:
    """What stands behind a special token within an answer belongs to no list of instructions."""
    return chat.text(chat.special.in_front_of(chat.generated_response(completion.ids)))


def _with_instructions(
    rows: list[Row], pools: Iterator[list[str]], prompts: Prompts, settings: InstructSettings
) -> list[dict[str, Any]]:
    """The records with one instruction drawn per turn; turns without a pool are left out, and records without turns."""
    records = []
    for row in rows:
        turns = []
        for index, turn in enumerate(row.record["turns"]):
            if not (pool := next(pools)):
                continue
            name = f"{row.record['doc_id']}\x1f{index}"
            instruction = random.Random(seed_for(settings.seed, "draw", name)).choice(pool)
            rng = random.Random(seed_for(settings.seed, "lead-in", name))
            if rng.random() < settings.lead_in_probability:
                instruction = prompts.with_lead_in(instruction, rng)
            turns.append(turn | {"instruction": instruction, "instruction_pool": pool})
        if turns:
            records.append(row.record | {"turns": turns})
    return records


def _unusable(answers: int, first: str) -> str:
    return (
        f"no instruction could be read from any of the model's {answers} answers; the first begins with "
        f"{first[:160]!r}; check that the model is tuned for chat, or give other words with --prompts"
    )


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
