"""What a model's chat template and tokenizer say about the ids of a conversation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..chat.format import ChatFormat


@dataclass(frozen=True, kw_only=True)
class TemplateIds:
    """`followers` are what the template may put behind an end of turn: the way to the next user message, and the end
    of a conversation with or without another opening for an answer."""

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
        """Whether ids are nothing but template: the beginning of a follower, or white space."""
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
