"""Which tokens no answer may hold, as ids or spelled out.

A chat model writes its end-of-turn token once. A special token before that (an end token that generation went past, the
opening of another turn) is a sign that what follows is no answer.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any


class SpecialTokens:
    """The special tokens of a Hugging Face tokenizer as ids, and as text those that end an answer or stand in the chat
    template, which are the ones `written` in a conversation. The unknown token is a piece of text like others."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int], template_ids: frozenset[int]):
        added = tokenizer.added_tokens_decoder
        special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self.ids = (frozenset(special) | end_ids) - {tokenizer.unk_token_id}
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
        """Whether a text spells one out."""
        return self._spelled.search(text) is not None

    def in_front_of(self, ids: Sequence[int]) -> list[int]:
        """The ids before the first special token."""
        return list(takewhile(lambda token: token not in self.ids, ids))

    def without_spelled_end(self, text: str) -> str:
        """A text without the end tokens that are spelled out behind its last word, and the white space before them."""
        while ended := next((end for end in self._ends if text.rstrip().endswith(end)), None):
            text = text.rstrip().removesuffix(ended).rstrip()
        return text
