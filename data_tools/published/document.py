"""Make a tokenised record of one published document from both conversations and their reference sequences.

Turns are matched with reference sequences by their answers' ids. A turn that cannot be used (no reference sequence, an
answer that is empty or without its end, ...) is cut off if only such turns follow it. In the middle of a conversation
it makes the document useless, because the model saw this turn when it answered the later ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from ..pairs import BRANCHES
from .conversation import Columns, Conversation, Refused, Repairs, TemplateIds, read_conversation, runs

REQUIRED = (
    *(f"{branch}_{name}" for branch in BRANCHES for name in ("input_ids", "labels")),
    *(f"ref_{branch}_{name}" for branch in BRANCHES for name in ("input_ids", "labels")),
    "chosen_lm_labels",
)
OPTIONAL = tuple(f"{prefix}{branch}_attention_mask" for prefix in ("", "ref_") for branch in BRANCHES)


@dataclass(frozen=True)
class Limits:
    """Most tokens of a whole conversation (None: any number), and of a short prompt with its answer."""

    conversation: int | None
    reference: int


@dataclass(frozen=True)
class Document:
    """The ids and spans of a tokenised record, and what was done to get them."""

    fields: dict[str, Any]
    turns: int
    turns_cut: int
    repairs: frozenset[str]


@dataclass(frozen=True)
class _Reference:
    """What the reference model read for one turn: the prompt and the answers that follow it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def read_document(columns: Mapping[str, Any], template: TemplateIds, limits: Limits) -> Document:
    """Return the document of one row. Raises Refused if it cannot be trained on."""
    repairs: Repairs = set()
    chosen, rejected = (
        read_conversation(
            Columns(
                columns[f"{branch}_input_ids"],
                columns[f"{branch}_labels"],
                columns["chosen_lm_labels"] if branch == "chosen" else None,
                columns.get(f"{branch}_attention_mask"),
            ),
            template,
            repairs,
        )
        for branch in BRANCHES
    )
    if not chosen.answers or not rejected.answers:
        raise Refused("no_answer", "nothing is labelled as an answer")
    trunk = chosen.answers[0].start
    if rejected.answers[0].start != trunk or not np.array_equal(chosen.ids[:trunk], rejected.ids[:trunk]):
        raise Refused("beginnings_differ", "chosen and rejected differ before their first answers")
    if trunk == 0:
        raise Refused("no_prompt", "nothing precedes the first answer")
    references = _references(columns, template, repairs)
    matched = _match(chosen, rejected, references, repairs)
    faults = list(_faults(chosen, rejected, matched, limits))
    turns = _usable(faults)
    if limits.conversation is not None:
        longest = max(conversation.answers[turns - 1].end for conversation in (chosen, rejected))
        if longest > limits.conversation:
            raise Refused("too_long", f"a conversation of {longest} tokens exceeds max_tokens {limits.conversation}")
    prompts = [reference.prompt for reference in matched[:turns] if reference is not None]
    fields = _fields(chosen, rejected, turns, repairs) | {"short_prompts": prompts}
    return Document(fields, turns, len(faults) - turns, frozenset(repairs))


def _references(columns: Mapping[str, Any], template: TemplateIds, repairs: Repairs) -> list[_Reference]:
    """Pair the reference sequences of both branches that have the same prompt, in order; leave out others."""
    sides = [list(_prompts_and_answers(columns, branch, template, repairs)) for branch in BRANCHES]
    references, unused = [], sides[1]
    for prompt, answer in sides[0]:
        position = next((index for index, (other, _) in enumerate(unused) if other == prompt), None)
        if position is not None:
            references.append(_Reference(prompt, answer, unused[position][1]))
            unused = unused[position + 1 :]
    if len(references) < max(map(len, sides)):
        repairs.add("surplus_references")
    return references


def _prompts_and_answers(
    columns: Mapping[str, Any], branch: str, template: TemplateIds, repairs: Repairs
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield prompt and answer of the reference sequences that have a prompt and exactly one answer."""
    ids_of, labels_of = columns[f"ref_{branch}_input_ids"], columns[f"ref_{branch}_labels"]
    masks = columns.get(f"ref_{branch}_attention_mask")
    if not isinstance(ids_of, list) or not isinstance(labels_of, list) or len(ids_of) != len(labels_of):
        raise Refused("malformed", f"ref_{branch}_input_ids and ref_{branch}_labels must be lists, one per turn")
    if not isinstance(masks, list) or len(masks) != len(ids_of):
        masks = [None] * len(ids_of)
    for ids, labels, mask in zip(ids_of, labels_of, masks, strict=True):
        found = read_conversation(Columns(ids, labels, mask=mask), template, repairs)
        if len(found.answers) == 1 and found.answers[0].start > 0:
            answer = found.answers[0]
            yield found.ids[: answer.start].tolist(), found.ids[answer.start : answer.end].tolist()


def _match(
    chosen: Conversation, rejected: Conversation, references: list[_Reference], repairs: Repairs
) -> list[_Reference | None]:
    """Return per turn the first reference, after those of earlier turns, with both of its answers."""
    wanted = list(zip_longest(_answer_ids(chosen), _answer_ids(rejected)))
    held = [(reference.chosen, reference.rejected) for reference in references]
    if len(held) != len(wanted) and any(held.count(answers) > 1 or wanted.count(answers) > 1 for answers in held):
        raise Refused("ambiguous_references", "a turn repeats the answers of another, and a reference is missing")
    matched: list[_Reference | None] = []
    place = 0
    for answers in wanted:
        position = next((index for index in range(place, len(held)) if held[index] == answers), None)
        matched.append(None if position is None else references[position])
        place = place if position is None else position + 1
    if sum(reference is not None for reference in matched) < len(references):
        repairs.add("surplus_references")
    return matched


def _answer_ids(conversation: Conversation) -> list[list[int]]:
    return [conversation.ids[answer.start : answer.end].tolist() for answer in conversation.answers]


def _faults(
    chosen: Conversation, rejected: Conversation, matched: list[_Reference | None], limits: Limits
) -> Iterator[str | None]:
    """Yield per turn the reason why it cannot be used, or None."""
    instructions = list(zip_longest(_instructions(chosen), _instructions(rejected)))
    for turn, reference in enumerate(matched):
        if turn >= min(len(chosen.answers), len(rejected.answers)):
            yield "turn_counts_differ"
        elif chosen.answers[turn].fault or rejected.answers[turn].fault:
            yield chosen.answers[turn].fault or rejected.answers[turn].fault
        elif turn > 0 and instructions[turn - 1][0] != instructions[turn - 1][1]:
            yield "instructions_differ"
        elif reference is None:
            yield "turn_without_reference"
        elif len(reference.prompt) + max(len(reference.chosen), len(reference.rejected)) > limits.reference:
            yield "reference_too_long"
        else:
            yield None


def _instructions(conversation: Conversation) -> list[list[int]]:
    """Return the ids between the answers."""
    return [conversation.ids[before.end : after.start].tolist() for before, after in pairwise(conversation.answers)]


def _usable(faults: list[str | None]) -> int:
    """Count the turns that are kept: those before the first fault, if no good one comes after it."""
    first = next((turn for turn, fault in enumerate(faults) if fault is not None), len(faults))
    if first == 0 or any(fault is None for fault in faults[first:]):
        reason = faults[first]
        assert reason is not None
        raise Refused(reason, f"turn {first + 1} of {len(faults)}: {reason.replace('_', ' ')}")
    return first


def _fields(chosen: Conversation, rejected: Conversation, turns: int, repairs: Repairs) -> dict[str, Any]:
    trunk = chosen.answers[0].start
    length = chosen.answers[turns - 1].end
    left_out = chosen.left_out[:length].copy()
    # Nothing predicts the first token.
    left_out[0] = True
    for answer in chosen.answers[:turns]:
        if left_out[answer.start : answer.end].any():
            repairs.add("answer_outside_nll")
            left_out[answer.start : answer.end] = False
    return {
        "trunk_ids": chosen.ids[:trunk].tolist(),
        "chosen_ids": chosen.ids[trunk:length].tolist(),
        "rejected_ids": rejected.ids[trunk : rejected.answers[turns - 1].end].tolist(),
        "chosen_spans": [[answer.start - trunk, answer.end - trunk] for answer in chosen.answers[:turns]],
        "rejected_spans": [[answer.start - trunk, answer.end - trunk] for answer in rejected.answers[:turns]],
        "nll_ignore_spans": [[start, end] for start, end in runs(left_out)],
    }
