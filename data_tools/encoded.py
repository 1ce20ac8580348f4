"""Pairs as token ids, the form that `score` and `pack` use, made from text pairs or from tokenised records.

A tokenised record is a JSONL line without text, as `longpo data import-hf` writes it:
{"doc_id", "trunk_ids", "chosen_ids", "rejected_ids", "chosen_spans", "rejected_spans", "nll_ignore_spans",
"short_prompts"}: the fields of a shard's record (see nemo_longpo.shards.schema), and per turn the ids that the
reference model reads before each answer.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nemo_longpo.errors import InputError
from nemo_longpo.shards.schema import Span, branch_problem, ignored_problem, spans_problem

from . import pairs
from .chat.format import ChatFormat, LongPair
from .pairs import BRANCHES, Pair
from .prompts import Prompts
from .runner.rows import Row

_ID_FIELDS = ("trunk_ids", "chosen_ids", "rejected_ids")


class EncodedPair(Protocol):
    """One document. Responses end with the end of turn; they are the same ids in the long and the short sequences."""

    @property
    def doc_id(self) -> str: ...

    @property
    def turns(self) -> int: ...

    @property
    def spelled_ends(self) -> int:
        """Number of answers, given as text, with a spelled-out end token, which is left out."""

    def long(self) -> LongPair:
        """Both full conversations over the document."""

    def short_prompts(self) -> list[list[int]]:
        """Per turn, the ids that the reference model reads before each response."""

    def responses(self, branch: str) -> list[list[int]]:
        """Return per turn the ids of the "chosen" or the "rejected" response."""

    def scored(self, logps: dict[str, list[list[float]]]) -> dict[str, Any]:
        """Return the record with reference log-probs, per branch and turn, as `score` writes it."""

    def logps(self, branch: str) -> tuple[np.ndarray, ...]:
        """Return float32 log-probs per turn, as `score` stored them. Raises InputError if a field is wrong."""


@dataclass(frozen=True)
class PairEncoder:
    """Turns rows of either kind into EncodedPairs."""

    chat: ChatFormat
    prompts: Prompts
    vocab_size: int

    def encode(self, row: Row) -> EncodedPair:
        """Parse and check a row. Raises InputError if it cannot be trained on, or holds ids outside the model's
        vocabulary."""
        if not is_tokenised(row):
            return _TextPair(row, *parse_answered(row, self.chat), self)
        pair = parse_tokenised(row)
        pair.check_model(self.vocab_size, self.chat)
        return pair


def is_tokenised(row: Row) -> bool:
    return "trunk_ids" in row.record


def check_row(row: Row, chat: ChatFormat) -> None:
    """Check a row as far as possible without a model. Raises InputError if it cannot be trained on."""
    if is_tokenised(row):
        parse_tokenised(row)
    else:
        parse_answered(row, chat)


def parse_answered(row: Row, chat: ChatFormat) -> tuple[Pair, int]:
    """Return a text pair and how many of its answers spelled out an end token.

    Raises InputError if an answer cannot be trained on.
    """
    pair, spelled_ends = pairs.without_spelled_ends(chat, pairs.parse_pair(row))
    pairs.check_answers(pair, chat, row.where)
    return pair, spelled_ends


class _TextPair:
    """A pair of texts. Tokenises only what is used: short sequences need no document, long ones no chunks."""

    def __init__(self, row: Row, pair: Pair, spelled_ends: int, encoder: PairEncoder):
        self._row, self._pair, self.spelled_ends = row, pair, spelled_ends
        self._chat, self._prompts = encoder.chat, encoder.prompts
        self._answers = {
            branch: pairs.answer_ids(encoder.chat, pair, branch, encoder.vocab_size, row.where) for branch in BRANCHES
        }

    @property
    def doc_id(self) -> str:
        return self._pair.doc_id

    @property
    def turns(self) -> int:
        return len(self._pair.turns)

    def long(self) -> LongPair:
        """The user messages are the document with the first instruction, then the other instructions."""
        first, *others = [turn.instruction for turn in self._pair.turns]
        users = [self._prompts.ask_about(self._pair.document, first), *others]
        start = self._prompts.document_start(first)
        chunks = [self._chunk_place(turn.chunk, start) for turn in self._pair.turns]
        return self._chat.long_pair(users, self._answers["chosen"], self._answers["rejected"], chunks)

    def _chunk_place(self, chunk: str, document_start: int) -> tuple[int, int]:
        """Return a chunk's first place in the document, as characters of the user message; or (0, 0)."""
        found = self._pair.document.find(chunk)
        return (0, 0) if found < 0 else (document_start + found, document_start + found + len(chunk))

    def short_prompts(self) -> list[list[int]]:
        return [self._chat.prompt(self._prompts.ask_about(turn.chunk, turn.instruction)) for turn in self._pair.turns]

    def responses(self, branch: str) -> list[list[int]]:
        return [self._chat.finished(ids) for ids in self._answers[branch]]

    def scored(self, logps: dict[str, list[list[float]]]) -> dict[str, Any]:
        turns: list[dict[str, Any]] = []
        for index, turn in enumerate(self._pair.turns):
            scored: dict[str, Any] = {"chunk": turn.chunk, "instruction": turn.instruction}
            for branch in BRANCHES:
                scored[branch] = getattr(turn, branch)
                scored[f"{branch}_token_ids"] = self._answers[branch][index]
                scored[f"ref_{branch}_logps"] = logps[branch][index]
            turns.append(scored)
        return {"doc_id": self.doc_id, "document": self._pair.document, "turns": turns}

    def logps(self, branch: str) -> tuple[np.ndarray, ...]:
        turns = self._row.record["turns"]
        return tuple(
            pairs.read_logps(self._row, turn, f"ref_{branch}_logps", f"turns[{index}].")
            for index, turn in enumerate(turns)
        )


@dataclass(frozen=True)
class TokenisedPair:
    """A tokenised record whose spans and lists have been checked."""

    row: Row
    pair: LongPair
    prompts: list[list[int]]

    @property
    def doc_id(self) -> str:
        return self.row.record["doc_id"]

    @property
    def turns(self) -> int:
        return len(self.prompts)

    @property
    def spelled_ends(self) -> int:
        return 0

    def long(self) -> LongPair:
        return self.pair

    def short_prompts(self) -> list[list[int]]:
        return self.prompts

    def responses(self, branch: str) -> list[list[int]]:
        ids, spans = getattr(self.pair, f"{branch}_ids"), getattr(self.pair, f"{branch}_spans")
        return [ids[start:end] for start, end in spans]

    def scored(self, logps: dict[str, list[list[float]]]) -> dict[str, Any]:
        return self.row.record | {f"ref_{branch}_logps": logps[branch] for branch in BRANCHES}

    def logps(self, branch: str) -> tuple[np.ndarray, ...]:
        name = f"ref_{branch}_logps"
        stored = pairs.read_field(self.row, self.row.record, name, list, "")
        turns = _numbered(name, stored)
        return tuple(pairs.read_logps(self.row, turns, key, "") for key in turns)

    def check_model(self, vocab_size: int, chat: ChatFormat) -> None:
        """Raises InputError if the ids are outside a model's vocabulary, or answers hold special tokens or do not end
        as the model ends them."""
        lists = {name: getattr(self.pair, name) for name in _ID_FIELDS} | _numbered("short_prompts", self.prompts)
        for name, ids in lists.items():
            if max(ids) >= vocab_size:
                raise InputError(
                    f"{self.row.where}: field '{name}' holds ids outside the model's vocabulary of {vocab_size}; use "
                    "this model's ids"
                )
        for branch in BRANCHES:
            for index, response in enumerate(self.responses(branch)):
                answer = response[:-1]
                if chat.finished(answer) != response or not answer:
                    raise InputError(
                        f"{self.row.where}: field '{branch}_spans[{index}]' must cover an answer and its end of turn "
                        f"{chat.end_of_turn_ids}; give the model whose chat template made the ids"
                    )
                if found := chat.special.within(answer, chat.text(answer)):
                    raise InputError(
                        f"{self.row.where}: field '{branch}_spans[{index}]' covers the special token {found[0]} within "
                        "an answer; remove the turn"
                    )


def parse_tokenised(row: Row) -> TokenisedPair:
    """Parse a row. Raises InputError if a field is missing, of the wrong kind, or contradicts another one."""
    record = row.record
    pairs.read_text(row, record, "doc_id", "")
    ids = {name: pairs.read_ids(row, record, name, "") for name in _ID_FIELDS}
    trunk = len(ids["trunk_ids"])
    spans = {branch: _spans(row, f"{branch}_spans", len(ids[f"{branch}_ids"])) for branch in BRANCHES}
    for branch in BRANCHES:
        _refuse(row, f"{branch}_spans", branch_problem(spans[branch], branch, len(ids[f"{branch}_ids"])))
    turns = len(spans["chosen"])
    prompts = pairs.read_field(row, record, "short_prompts", list, "")
    for name, count in (("rejected_spans", len(spans["rejected"])), ("short_prompts", len(prompts))):
        if count != turns:
            _refuse(
                row,
                name,
                f"has {count} turns, but chosen_spans has {turns}; every turn needs both answers and one prompt",
            )
    ignored = _spans(row, "nll_ignore_spans", trunk + len(ids["chosen_ids"]))
    _refuse(row, "nll_ignore_spans", ignored_problem(ignored, spans["chosen"], trunk))
    named = _numbered("short_prompts", prompts)
    for name in named:
        pairs.read_ids(row, named, name, "")
    pair = LongPair(
        trunk_ids=ids["trunk_ids"],
        chosen_ids=ids["chosen_ids"],
        rejected_ids=ids["rejected_ids"],
        chosen_spans=spans["chosen"],
        rejected_spans=spans["rejected"],
        nll_ignore_spans=ignored,
    )
    return TokenisedPair(row, pair, prompts)


def _numbered(name: str, values: list[Any]) -> dict[str, Any]:
    """Return the elements of a list under their names in messages."""
    return {f"{name}[{index}]": value for index, value in enumerate(values)}


def _spans(row: Row, name: str, length: int) -> list[Span]:
    spans = pairs.read_field(row, row.record, name, list, "")
    if not all(isinstance(span, list) and len(span) == 2 and set(map(type, span)) == {int} for span in spans):
        _refuse(row, name, f"must be ordered, disjoint [start, end) inside {length} tokens")
    _refuse(row, name, spans_problem(spans, length))
    return [(start, end) for start, end in spans]


def _refuse(row: Row, name: str, problem: str) -> None:
    if problem:
        raise InputError(f"{row.where}: field '{name}' {problem}")
