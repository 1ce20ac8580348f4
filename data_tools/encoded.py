"""Pairs as token ids: the one form that `score` and `pack` work on, made from text pairs or from tokenised records."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .chat.format import ChatFormat, LongPair
from .pairs import BRANCHES, Pair, answer_ids, check_answers, parse_pair, read_logps, without_spelled_ends
from .prompts import Prompts
from .runner.rows import Row
from .tokenised import parse_tokenised


class EncodedPair(Protocol):
    """One document. Responses end with the end of turn; they are the same ids in the long and the short sequences."""

    @property
    def doc_id(self) -> str: ...

    @property
    def turns(self) -> int: ...

    @property
    def spelled_ends(self) -> int:
        """How many answers, given as text, spelled out an end token that was left out."""

    def long(self) -> LongPair:
        """Both full conversations over the document."""

    def short_prompts(self) -> list[list[int]]:
        """Per turn, what the reference model reads in front of either response."""

    def responses(self, branch: str) -> list[list[int]]:
        """Per turn, the ids of the "chosen" or the "rejected" response."""

    def scored(self, logps: dict[str, list[list[float]]]) -> dict[str, Any]:
        """The record with reference log-probs, per branch and turn, as `score` writes it."""

    def logps(self, branch: str) -> tuple[np.ndarray, ...]:
        """float32 log-probs per turn, as `score` stored them. Raises InputError naming the field."""


@dataclass(frozen=True)
class PairEncoder:
    """Turns rows of either kind into EncodedPairs."""

    chat: ChatFormat
    prompts: Prompts
    vocab_size: int

    def encode(self, row: Row) -> EncodedPair:
        """Parse and check a row. Raises InputError if it cannot be trained on, or holds ids that the model does not
        have."""
        if not is_tokenised(row):
            return _TextPair(row, *parse_answered(row, self.chat), self)
        pair = parse_tokenised(row)
        pair.check_model(self.vocab_size, self.chat)
        return pair


def is_tokenised(row: Row) -> bool:
    return "trunk_ids" in row.record


def check_row(row: Row, chat: ChatFormat) -> None:
    """Check a row as far as that needs no model. Raises InputError if it cannot be trained on."""
    if is_tokenised(row):
        parse_tokenised(row)
    else:
        parse_answered(row, chat)


def parse_answered(row: Row, chat: ChatFormat) -> tuple[Pair, int]:
    """Return a text pair and how many of its answers spelled out an end token.

    Raises InputError if an answer cannot be trained on.
    """
    pair, spelled_ends = without_spelled_ends(chat, parse_pair(row))
    check_answers(pair, chat, row.where)
    return pair, spelled_ends


class _TextPair:
    """A pair of texts. Only what is asked for is tokenised: short sequences need no document, long ones no chunks."""

    def __init__(self, row: Row, pair: Pair, spelled_ends: int, encoder: PairEncoder):
        self._row, self._pair, self.spelled_ends = row, pair, spelled_ends
        self._chat, self._prompts = encoder.chat, encoder.prompts
        self._answers = {
            branch: answer_ids(encoder.chat, pair, branch, encoder.vocab_size, row.where) for branch in BRANCHES
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
        """Return where a chunk first stands in the document, as characters of the user message; or (0, 0)."""
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
            read_logps(self._row, turn, f"ref_{branch}_logps", f"turns[{index}].") for index, turn in enumerate(turns)
        )
