"""Pairs that come as token ids. A JSONL line without text, as `longpo data import-hf` writes it:

{"doc_id", "trunk_ids", "chosen_ids", "rejected_ids", "chosen_spans", "rejected_spans", "nll_ignore_spans",
"short_prompts"}: the fields of a shard's record (see nemo_longpo.shards.schema), and per turn the ids that the
reference model reads in front of either answer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_longpo.errors import InputError
from nemo_longpo.shards.schema import Span
from nemo_longpo.shards.validation import branch_problem, ignored_problem, spans_problem

from .chat.format import ChatFormat, LongPair
from .pairs import BRANCHES, read_field, read_ids, read_logps, read_text
from .runner.rows import Row

_ID_FIELDS = ("trunk_ids", "chosen_ids", "rejected_ids")


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
        stored = read_field(self.row, self.row.record, name, list, "")
        turns = _numbered(name, stored)
        return tuple(read_logps(self.row, turns, key, "") for key in turns)

    def check_model(self, vocab_size: int, chat: ChatFormat) -> None:
        """Raises InputError if the ids are outside a model's vocabulary, or answers hold special tokens or do not end
        as the model ends them."""
        end_of_turn = chat.end_of_turn_ids
        lists = {name: getattr(self.pair, name) for name in _ID_FIELDS} | _numbered("short_prompts", self.prompts)
        for name, ids in lists.items():
            if max(ids) >= vocab_size:
                raise InputError(
                    f"{self.row.where}: field '{name}' holds ids outside the model's vocabulary of {vocab_size}; use "
                    "this model's ids"
                )
        for branch in BRANCHES:
            for index, response in enumerate(self.responses(branch)):
                if response[-len(end_of_turn) :] != end_of_turn or len(response) == len(end_of_turn):
                    raise InputError(
                        f"{self.row.where}: field '{branch}_spans[{index}]' must cover an answer and its end of turn "
                        f"{end_of_turn}; give the model whose chat template made the ids"
                    )
                answer = response[: -len(end_of_turn)]
                if found := chat.special.within(answer, chat.text(answer)):
                    raise InputError(
                        f"{self.row.where}: field '{branch}_spans[{index}]' covers the special token {found[0]} within "
                        "an answer; remove the turn"
                    )


def parse_tokenised(row: Row) -> TokenisedPair:
    """Parse a row. Raises InputError if a field is missing, of the wrong kind, or contradicts another one."""
    record = row.record
    read_text(row, record, "doc_id", "")
    ids = {name: read_ids(row, record, name, "") for name in _ID_FIELDS}
    trunk = len(ids["trunk_ids"])
    spans = {branch: _spans(row, f"{branch}_spans", len(ids[f"{branch}_ids"])) for branch in BRANCHES}
    for branch in BRANCHES:
        _refuse(row, f"{branch}_spans", branch_problem(spans[branch], branch, len(ids[f"{branch}_ids"])))
    turns = len(spans["chosen"])
    prompts = read_field(row, record, "short_prompts", list, "")
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
        read_ids(row, named, name, "")
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
    spans = read_field(row, row.record, name, list, "")
    if not all(isinstance(span, list) and len(span) == 2 and set(map(type, span)) == {int} for span in spans):
        _refuse(row, name, f"must be ordered, disjoint [start, end) inside {length} tokens")
    _refuse(row, name, spans_problem(spans, length))
    return [(start, end) for start, end in spans]


def _refuse(row: Row, name: str, problem: str) -> None:
    if problem:
        raise InputError(f"{row.where}: field '{name}' {problem}")
