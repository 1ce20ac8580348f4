"""Token ids as readable pieces of text.

A token may be a part of a character, or decode otherwise at the start of a text than inside it. So tokens are decoded
behind their neighbours, and those that make one character together stay together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LEAD = 8  # tokens in front that can change how a token decodes
_LONGEST_GROUP = 8
_UNFINISHED = "\ufffd"  # how a part of a character decodes


@dataclass(frozen=True)
class Group:
    """Tokens [start, end) of a list, which decode to `text` together."""

    start: int
    end: int
    text: str
    special: bool = False


class TokenText:
    """Decodes with a Hugging Face tokenizer; without one, the text of a token is its id."""

    def __init__(self, tokenizer: Any | None):
        self._tokenizer = tokenizer
        added = [] if tokenizer is None else tokenizer.added_tokens_decoder.items()
        self._special = frozenset(token for token, added_token in added if added_token.special)

    def groups(self, ids: Sequence[int], start: int = 0, end: int | None = None) -> list[Group]:
        """Groups that cover ids[start:end]; what stands in front of `start` is looked at, but not part of them."""
        end = len(ids) if end is None else end
        if self._tokenizer is None:
            return [Group(at, at + 1, f"{ids[at]} ") for at in range(start, end)]
        groups: list[Group] = []
        known, first = max(0, start - _LEAD), start
        for last in range(start + 1, end + 1):
            text = self._text_behind(ids[known:first], ids[first:last])
            if text.endswith(_UNFINISHED) and last < end and last - first < _LONGEST_GROUP:
                continue
            groups.append(Group(first, last, text, special=ids[last - 1] in self._special))
            known, first = max(known, last - _LEAD), last
        return groups

    def _text_behind(self, lead: Sequence[int], ids: Sequence[int]) -> str:
        """What `ids` add to the text of `lead`."""
        before, whole = self._decode(lead), self._decode([*lead, *ids])
        pairs = enumerate(zip(before, whole, strict=False))
        return whole[next((at for at, (old, new) in pairs if old != new), len(before)) :]

    def _decode(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
