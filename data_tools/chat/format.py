"""Conversations as token ids, put together from template pieces and contents.

A response is the same ids in the short reference prompt and in the long sequence, because both are assembled from the
same segments. Nothing is ever searched in tokenised text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import takewhile
from typing import Any

import numpy as np

from nemo_longpo.shards.schema import Span

from .template import ChatTemplate, TurnPieces


@dataclass(frozen=True, kw_only=True)
class LongPair:
    """The token ids of one document's pair, as in a PairRecord. Lists of (start, end) spans, end excluded."""

    trunk_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_spans: list[Span]  # within chosen_ids, end-of-turn token included
    rejected_spans: list[Span]
    nll_ignore_spans: list[Span]  # within trunk_ids + chosen_ids: BOS, system prompt, template markers
    chunk_spans: list[Span] | None = None  # within trunk_ids, one per turn; None if they are not known


class SpecialTokens:
    """The special tokens of a Hugging Face tokenizer as ids, and as text those that end an answer or stand in the chat
    template, which are the ones `written` in a conversation, and special even if the tokenizer's files do not say so.
    The unknown token is a piece of text like others."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int], template_ids: frozenset[int]):
        added = tokenizer.added_tokens_decoder
        special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self.ids = (frozenset(special) | end_ids | template_ids) - {tokenizer.unk_token_id}
        self.written = self.ids & (end_ids | template_ids)
        self._tokenizer = tokenizer
        self._ends = tuple(added[index].content for index in sorted(end_ids) if index in added)
        spelled = {added[index].content for index in self.written if index in added}
        self._spelled = re.compile("|".join(sorted(map(re.escape, spelled), key=len, reverse=True)) or r"(?!)")

    def within(self, ids: Sequence[int], text: str) -> list[str]:
        """The special tokens among `ids`, and those that `text` spells out; each once."""
        found = [self._tokenizer.convert_ids_to_tokens(token) for token in ids if token in self.ids]
        return list(dict.fromkeys([*found, *self._spelled.findall(text)]))

    def spelled_in(self, text: str) -> bool:
        """Whether a text spells out one that is `written`."""
        return self._spelled.search(text) is not None

    def in_front_of(self, ids: Sequence[int]) -> list[int]:
        """The ids before the first special token."""
        return list(takewhile(lambda token: token not in self.ids, ids))

    def without_spelled_end(self, text: str) -> str:
        """A text without the end tokens that are spelled out behind its last word, and the white space before them."""
        while ended := next((end for end in self._ends if text.rstrip().endswith(end)), None):
            text = text.rstrip().removesuffix(ended).rstrip()
        return text


class ChatFormat:
    """Assembles conversations with a Hugging Face tokenizer's chat template.

    `end_ids` are the tokens that the model's files declare as ends of an answer. Whichever of them a model writes, an
    answer is stored without it and trained with the template's own end of turn. `day` is the date for templates that
    print one, by default today's; `printed_day` is None for the others. `template_kwargs` are what else the template is
    told. Raises InputError if the template cannot be taken apart (see ChatTemplate).
    """

    def __init__(
        self,
        tokenizer: Any,
        end_ids: Iterable[int] = (),
        day: date | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.known_ids = len(tokenizer)  # asked once: a tokenizer counts by building its whole vocabulary
        self.template_kwargs = dict(template_kwargs or {})
        day = day or date.today()
        self._template = ChatTemplate(tokenizer, day, self.template_kwargs)
        self.printed_day = day if self._template.prints_day() else None
        self.pieces_hash = self._template.pieces_hash()
        self.end_of_turn_ids = self._template.end_of_turn_ids
        self.stop_ids = frozenset({self.end_of_turn_ids[-1], tokenizer.eos_token_id, *end_ids} - {None})
        self.special = SpecialTokens(tokenizer, self.stop_ids, self._template.special_ids())

    def template_ids(self, turns: int) -> list[list[int]]:
        """The 2n + 1 pieces that the template puts around and between the contents of n turns."""
        return self._template.turn_pieces(turns).piece_ids

    def prompt(self, user: str) -> list[int]:
        """One user message up to and including the assistant's opening: what the model answers."""
        message = self._template.user_message(self._template.turn_pieces(1), 0, user)
        return [*message.before, *message.ids, *message.after]

    def response_ids(self, text: str) -> list[int]:
        """The tokens of an answer given as text, without the end of turn but with the template's text in front of it,
        as a model writes it."""
        return self._template.answer_ids(text)

    def rewrites(self, answer: str) -> bool:
        """Whether the template writes an answer otherwise than it stands here, as it does with thoughts."""
        return self._template.rewrites(answer)

    def finished(self, response_ids: Sequence[int]) -> list[int]:
        """A response with its end of turn: what every span covers and every log-prob sum runs over.

        Text that a template writes in front of its last token, such as a line break, is added unless the response ends
        with it: a model that wrote it may have done so in one token with its last word.
        """
        lead = self._template.end_text
        written = lead and self._decoded(response_ids[-len(lead) - 1 :]).endswith(lead)
        return [*response_ids, *self.end_of_turn_ids[-1 if written else 0 :]]

    def text(self, ids: Sequence[int]) -> str:
        return self._decoded(ids).strip()

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def content_length(self, text: str) -> int:
        """Tokens of a text as the content of a user message."""
        return len(self._template.user_message(self._template.turn_pieces(1), 0, text).ids)

    def token_ends(self, text: str) -> list[int]:
        """Where each token of a text ends, as indices into the text."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, verbose=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return [end for _, end in encoded["offset_mapping"]]

    def long_pair(
        self,
        users: Sequence[str],
        chosen: Sequence[Sequence[int]],
        rejected: Sequence[Sequence[int]],
        chunks: Sequence[Span] | None = None,
    ) -> LongPair:
        """Return the two full conversations of a document: user messages (the first one holds the document) and
        answers.

        Answers are token ids without the end of turn, one per user message. `chunks` are characters [start, end) of
        the first user message, (0, 0) for none; the pair's `chunk_spans` are the tokens that hold them.
        """
        pieces = self._template.turn_pieces(len(users))
        first = self._template.user_message(pieces, 0, users[0], chunks or ())
        opening = len(first.before)
        trunk = [*first.before, *first.ids, *first.after]
        ignored = [(0, opening), (opening + len(first.ids), len(trunk))]
        chosen_ids, chosen_spans, chosen_ignored = self._branch(pieces, users, chosen)
        rejected_ids, rejected_spans, _ = self._branch(pieces, users, rejected)
        ignored += [(start + len(trunk), end + len(trunk)) for start, end in chosen_ignored]
        return LongPair(
            trunk_ids=trunk,
            chosen_ids=chosen_ids,
            rejected_ids=rejected_ids,
            chosen_spans=chosen_spans,
            rejected_spans=rejected_spans,
            nll_ignore_spans=[(start, end) for start, end in ignored if start < end],
            chunk_spans=None if chunks is None else [_moved(span, opening) for span in first.stretches],
        )

    def _branch(
        self, pieces: TurnPieces, users: Sequence[str], answers: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[Span], list[Span]]:
        """Return (ids, response spans, template spans) of y_1 <eot> close, open, I_2, close, open, y_2 <eot> … y_n
        <eot>."""
        ids: list[int] = []
        spans, markers = [], []
        end = len(self.end_of_turn_ids)
        for turn, answer in enumerate(answers):
            if turn > 0:
                user = self._template.user_message(pieces, turn, users[turn])
                between = user.before[end:]
                at = len(ids)
                markers.append((at, at + len(between)))
                ids += [*between, *user.ids, *user.after]
                markers.append((len(ids) - len(user.after), len(ids)))
            start = len(ids)
            ids += self.finished(answer)
            spans.append((start, len(ids)))
        return ids, spans, markers


def _moved(span: Span, by: int) -> Span:
    """Shift a span; an empty one stays (0, 0)."""
    start, end = span
    return (start + by, end + by) if start < end else (0, 0)


def as_ids(ids: Sequence[int]) -> np.ndarray:
    """Return ids as int32 [n]."""
    return np.asarray(ids, dtype=np.int32)


def as_spans(spans: Sequence[Span]) -> np.ndarray:
    """Return spans as int32 [n, 2]."""
    return np.asarray(spans, dtype=np.int32).reshape(-1, 2)
