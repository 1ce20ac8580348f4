"""Read one published conversation of S tokens: align labels with ids, remove padding, find the answers.

`TemplateIds` holds what the model's chat template and tokenizer say about these ids.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nemo_longpo.logprobs import IGNORE_LABEL
from nemo_longpo.shards.schema import Span

from ..chat.format import ChatFormat


@dataclass(frozen=True, kw_only=True)
class TemplateIds:
    """Ids of the chat template. `followers` are what it may put after an end of turn: the ids up to the next user
    message, and the end of a conversation with or without another opening for an answer."""

    opening: list[int]
    answer_opening: list[int]
    end_of_turn: list[int]
    followers: list[list[int]]
    special: frozenset[int]
    padding: frozenset[int]  # ids that may fill up a sequence; some also have a meaning within it
    pad_only: frozenset[int]  # ids that have no other use
    vocab_size: int
    text: Callable[[Sequence[int]], str]
    special_tokens: Callable[[Sequence[int]], list[str]]  # those that no answer may hold, as ids or spelled out

    def behind_end_of_turn(self, ids: np.ndarray) -> bool:
        """Return whether ids are only template: the beginning of a follower, or white space."""
        found = ids.tolist()
        return any(found == follower[: len(found)] for follower in self.followers) or not self.text(found).strip()


def template_ids(chat: ChatFormat, vocab_size: int) -> TemplateIds:
    opening, answer_opening, between, _, end = chat.template_ids(2)
    tokenizer, stop = chat.tokenizer, len(chat.end_of_turn_ids)
    pads = {tokenizer.pad_token_id} - {None, tokenizer.bos_token_id, *chat.end_of_turn_ids}
    fillers = {tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, *chat.end_of_turn_ids} - {None}
    return TemplateIds(
        opening=opening,
        answer_opening=answer_opening,
        end_of_turn=chat.end_of_turn_ids,
        followers=[between[stop:], end[stop:], end[stop:] + answer_opening],
        special=frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder),
        padding=frozenset(fillers),
        pad_only=frozenset(pads),
        vocab_size=vocab_size,
        text=partial(tokenizer.decode, clean_up_tokenization_spaces=False),
        special_tokens=lambda ids: chat.special.within(ids, chat.text(ids)),
    )


# The kinds of repairs in one document.
Repairs = set[str]


class Refused(Exception):
    """A document that cannot be trained on. `reason` is counted in the report, `detail` is for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Answer:
    """An answer, ids[start:end], end of turn included. `fault` says why it cannot be used."""

    start: int
    end: int
    fault: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Ids from the first token of the template to the end of the last answer; the NLL skips those in `left_out`."""

    ids: np.ndarray  # int64 [S]
    left_out: np.ndarray  # bool [S]
    answers: list[Answer]


@dataclass(frozen=True)
class Columns:
    """One conversation as it was published; `mask` is its attention mask."""

    ids: Any
    labels: Any
    lm_labels: Any = None
    mask: Any = None


def read_conversation(columns: Columns, template: TemplateIds, repairs: Repairs) -> Conversation:
    """Align the labels with the ids, remove padding, and find the answers.

    Raises Refused if the columns contradict each other or hold ids that the model does not have.
    """
    ids = flat(columns.ids, repairs)
    labelled = put_on_ids(ids, flat(columns.labels, repairs), repairs)
    kept = labelled if columns.lm_labels is None else put_on_ids(ids, flat(columns.lm_labels, repairs), repairs)
    mask = None if columns.mask is None else flat(columns.mask, repairs)
    inside = _without_padding(ids, mask, template, repairs)
    ids, labelled, left_out = ids[inside], labelled[inside], ~kept[inside]
    if len(ids) and not (ids.min() >= 0 and ids.max() < template.vocab_size):
        raise Refused("outside_vocabulary", f"ids lie outside the model's vocabulary of {template.vocab_size}")
    answers = list(_answers(ids, labelled, template, repairs))
    if answers:
        _note_tail(ids[answers[-1].end :], template, repairs)
        ids, left_out = ids[: answers[-1].end], left_out[: answers[-1].end]
    if mask is None and np.isin(ids, list(template.pad_only)).any():
        raise Refused("padding_inside", "the pad token occurs within the conversation")
    return Conversation(ids, left_out, answers)


def flat(values: Any, repairs: Repairs) -> np.ndarray:
    """Return ids as int64 [S], without an outer list of one. Raises Refused if they are no flat list."""
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], list | np.ndarray):
        repairs.add("nesting")
        values = values[0]
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise Refused("malformed", "a list of token ids holds lists of unequal lengths") from error
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
        raise Refused("malformed", "a list of token ids holds something else")
    return array.astype(np.int64, copy=False)


def put_on_ids(ids: np.ndarray, labels: np.ndarray, repairs: Repairs) -> np.ndarray:
    """Return bool [S], true at labelled ids. Labels are the ids themselves, or those of the next position."""
    if len(labels) != len(ids):
        if (labels[len(ids) :] != IGNORE_LABEL).any():
            raise Refused("label_lengths_differ", f"{len(labels)} labels for {len(ids)} ids")
        repairs.add("label_lengths")
        missing = np.full(max(len(ids) - len(labels), 0), IGNORE_LABEL, dtype=np.int64)
        labels = np.concatenate([labels[: len(ids)], missing])
    standing = labels != IGNORE_LABEL
    if np.array_equal(labels[standing], ids[standing]):
        return standing
    moved = np.concatenate([[False], standing[:-1]])
    if not standing[-1] and np.array_equal(labels[:-1][standing[:-1]], ids[moved]):
        repairs.add("shifted_labels")
        return moved
    raise Refused("labels_differ", "labels are neither the ids nor the next ids")


def runs(mask: np.ndarray) -> list[Span]:
    """Return [start, end) of the maximal true stretches of a bool [S]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _without_padding(ids: np.ndarray, mask: np.ndarray | None, template: TemplateIds, repairs: Repairs) -> slice:
    """Return the slice between padding on the left and, if a mask shows it, padding on the right."""
    start, stop = 0, len(ids)
    if mask is not None and len(mask) == len(ids):
        real = np.flatnonzero(mask)
        start, stop = (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
        if stop - start != len(real):
            raise Refused("padding_inside", "the attention mask leaves out tokens within the conversation")
        if stop - start < len(ids):
            repairs.add("padding")
    if start == stop:
        return slice(start, stop)
    first, lead = int(ids[start]), _leading(ids[start:stop])
    if template.opening[:1] == [first]:
        surplus = lead - _leading(np.asarray(template.opening))
        if first in template.special and surplus > 0:
            repairs.add("doubled_start")
            start += surplus
    elif first in template.padding:
        repairs.add("padding")
        start += lead
    return slice(start, stop)


def _leading(ids: np.ndarray) -> int:
    """Count how often the first id is repeated at the beginning."""
    others = np.flatnonzero(ids != ids[0])
    return int(others[0]) if len(others) else len(ids)


def _answers(ids: np.ndarray, labelled: np.ndarray, template: TemplateIds, repairs: Repairs) -> Iterator[Answer]:
    """Yield one answer per labelled run. A run after an answer is not one if it holds only template."""
    last_end = -1
    for start, end in runs(labelled):
        if start <= last_end and template.behind_end_of_turn(ids[last_end:end]):
            repairs.add("labels_behind_answer")
            continue
        start = _behind_opening(ids, start, end, template.answer_opening, repairs)
        answer = _answer(ids, start, end, template, repairs)
        last_end = answer.end
        yield answer


def _behind_opening(ids: np.ndarray, start: int, end: int, opening: list[int], repairs: Repairs) -> int:
    """Return where the answer starts; the labels may begin within the assistant's opening."""
    length = len(opening)
    for inside in range(length):
        first = start + inside
        if first <= end and first >= length and ids[first - length : first].tolist() == opening:
            if inside:
                repairs.add("labels_before_answer")
            return first
    return start


def _answer(ids: np.ndarray, start: int, end: int, template: TemplateIds, repairs: Repairs) -> Answer:
    """Return the run [start, end) up to its end of turn, which may follow without a label."""
    mark = template.end_of_turn
    last = np.flatnonzero(ids[start : end + len(mark)] == mark[-1]) + start + 1
    stop = next((int(at) for at in last if at - len(mark) >= start and ids[at - len(mark) : at].tolist() == mark), None)
    if stop is None:
        return Answer(start, end, "unfinished_answer")
    if stop > end:
        repairs.add("end_of_turn_without_label")
    elif stop < end:
        if not template.behind_end_of_turn(ids[stop:end]):
            return Answer(start, end, "end_of_turn_within_answer")
        repairs.add("labels_behind_answer")
    answer = ids[start : stop - len(mark)].tolist()
    if not template.text(answer).strip():
        return Answer(start, stop, "empty_answer")
    return Answer(start, stop, "special_token_within_answer" if template.special_tokens(answer) else None)


def _note_tail(ids: np.ndarray, template: TemplateIds, repairs: Repairs) -> None:
    """Count what is cut off after the last answer, unless it is template."""
    template_only = [len(follower) for follower in template.followers if ids[: len(follower)].tolist() == follower]
    rest = ids[max(template_only, default=0) :]
    if len(rest) and set(rest.tolist()) <= template.padding:
        repairs.add("padding")
    elif not template.behind_end_of_turn(rest):
        repairs.add("text_behind_last_answer")
