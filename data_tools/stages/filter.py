"""Stage 4: leave out useless turns, counted by reason; the rest is written in the pairs format."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from ..chat.format import ChatFormat
from ..model import load_chat, tokenizer_identity
from ..pairs import BRANCHES, Pair, Turn, check_own_rows, is_empty, parse_pair, special_tokens, without_spelled_ends
from ..prompts import Prompts, choose_prompts
from ..quality.language import similarity, words
from ..quality.useless_answers import compressed_share, is_refusal, longest_copy, longest_loop, repeats, searchable
from ..quality.wrapping import holds_thought
from ..runner import PartResult, PartsJob, Process, Row, Tick, open_parts, run_parts
from ..settings import CpuWorkShare, FilterSettings, TemplateKwargs
from .registry import Report, StageCall

_BRANCHES: dict[str, tuple[str, ...]] = {"none": (), "chosen": ("chosen",), "both": BRANCHES}


def run_filter(call: StageCall) -> Report:
    """Write the pairs with the turns that can be trained on.

    `respond` records the special tokens within its answers; for other pairs, they are found with the tokenizer of
    `model_given`. Raises InputError if a pair is malformed, or no turn is left.
    """
    settings, share, model = call.settings(FilterSettings), call.settings(CpuWorkShare), call.model_given
    source = open_parts("filter", call.input, share)
    told = call.settings(TemplateKwargs).or_recorded(source.history())
    chat = None if model is None else load_chat(model, template_kwargs=told)
    if not source.history():  # hand-made; a stage's output is checked part by part
        check_own_rows(source, parse_pair)
    report = run_parts(
        PartsJob(
            name="filter",
            source=source,
            output=call.output,
            settings=settings.recorded() | ({} if chat is None else tokenizer_identity(chat)),
            make_process=partial(_make_process, settings, choose_prompts(None, source.history()), model, told),
            share=share,
            num_workers=share.num_workers,
        )
    )
    if report and not report.get("turns_out"):
        reasons = ", ".join(f"{name} {count}" for name, count in report.items() if name.startswith("dropped_"))
        raise InputError(
            f"{call.output}: none of the {report['turns_in']} turns is left ({reasons}); look at the answers in "
            f"{call.input}, or give other settings (`longpo data filter --help`) and another output"
        )
    return report


def _make_process(settings: FilterSettings, prompts: Prompts, model: Path | None, told: Mapping[str, Any]) -> Process:
    chat = None if model is None else load_chat(model, template_kwargs=told)
    return partial(_filter_rows, settings=settings, prompts=prompts, chat=chat)


def _filter_rows(
    rows: list[Row], tick: Tick, settings: FilterSettings, prompts: Prompts, chat: ChatFormat | None
) -> PartResult:
    counts: Counter[str] = Counter(documents_in=len(rows))
    records = []
    for row in rows:
        pair, raw_turns = parse_pair(row), row.record["turns"]
        if chat is not None:
            pair, spelled_ends = without_spelled_ends(chat, pair)
            counts["spelled_ends_left_out"] += spelled_ends
            raw_turns = [raw | _seen_by_model(chat, turn) for turn, raw in zip(pair.turns, raw_turns, strict=True)]
        kept = _kept_turns(pair, raw_turns, settings, prompts, counts)
        if kept:
            records.append({"doc_id": pair.doc_id, "document": pair.document, "turns": kept})
        else:
            counts["documents_without_turns"] += 1
    counts["documents_out"] = len(records)
    return PartResult(records, counts)


def _kept_turns(
    pair: Pair, raw_turns: list[dict[str, Any]], settings: FilterSettings, prompts: Prompts, counts: Counter[str]
) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    asked: list[str] = []
    for turn, raw in zip(pair.turns, raw_turns, strict=True):
        instruction = prompts.without_lead_in(turn.instruction)
        reason = drop_reason(turn, raw, pair.document, settings, instruction)
        if reason is None and _was_asked(instruction, asked, settings.max_instruction_similarity):
            reason = "repeated_instruction"
        if reason is None:
            kept.append({name: value for name, value in vars(turn).items() if value is not None})
            asked.append(instruction)
        else:
            counts[f"dropped_{reason}"] += 1
    counts.update(turns_in=len(pair.turns), turns_out=len(kept))
    return kept


def _seen_by_model(chat: ChatFormat, turn: Turn) -> dict[str, Any]:
    """Return the special tokens in both answers, and whether the template writes them otherwise, as `respond` does."""
    found = {f"{name}_special_tokens": special_tokens(chat, turn, name) for name in BRANCHES}
    return found | {f"{name}_rewritten": chat.rewrites(getattr(turn, name)) for name in BRANCHES}


def drop_reason(
    turn: Turn, raw: dict[str, Any], document: str, settings: FilterSettings, instruction: str
) -> str | None:
    """Return the first reason, in the order of docs/data.md, to leave out a turn by itself, or None.

    `raw` is the turn as it was read, with its finish reasons and special tokens; `instruction` has no lead-in. A loop
    is checked before truncation by the token limit: a higher limit would only give a longer loop.
    """
    if is_empty(turn, "chosen") or is_empty(turn, "rejected"):
        return "empty"
    if raw.get("chosen_cut_at") or any(raw.get(f"{name}_special_tokens") for name in BRANCHES):
        return "special_token"
    if any(holds_thought(getattr(turn, name)) for name in BRANCHES):
        return "thought"
    if any(raw.get(f"{name}_rewritten") for name in BRANCHES):
        return "rewritten"
    if any(_is_loop(getattr(turn, name), settings) for name in _BRANCHES[settings.drop_loops]):
        return "loop"
    finished = ("chosen",) if settings.keep_truncated == "rejected" else BRANCHES
    if any(raw.get(f"{name}_finish_reason") == "length" for name in finished):
        return "truncated"
    if settings.drop_identical and turn.chosen.strip() == turn.rejected.strip():
        return "identical"
    if settings.max_similarity < 1 and similarity(turn.chosen, turn.rejected) > settings.max_similarity:
        return "near_identical"
    if any(is_refusal(getattr(turn, name), settings.refusal_window) for name in _BRANCHES[settings.drop_refusals]):
        return "refusal"
    prompts = {"chosen": (turn.instruction, instruction, turn.chunk)}
    prompts["rejected"] = (turn.instruction, instruction, document)
    if any(_is_copy(getattr(turn, name), *prompts[name], settings) for name in _BRANCHES[settings.drop_copies]):
        return "copy"
    return None


def _is_loop(answer: str, settings: FilterSettings) -> bool:
    return longest_loop(answer) >= settings.loop_words or compressed_share(answer) < settings.min_compressed


def _is_copy(answer: str, instruction: str, bare_instruction: str, source: str, settings: FilterSettings) -> bool:
    """Return whether an answer repeats the instruction, or is mostly one long stretch of its source or instruction.

    A short answer in the words of the text, or one of the choices in an instruction, is not a copy.
    """
    if any(repeats(answer, asked, settings.copied_share) for asked in (instruction, bare_instruction)):
        return True
    longest = max(longest_copy(answer, searchable(text), settings.copied_words) for text in (instruction, source))
    return longest > 0 and longest >= settings.copied_share * len(words(answer))


def _was_asked(instruction: str, earlier: list[str], most: float) -> bool:
    return most < 1 and any(similarity(instruction, other) > most for other in earlier)
