"""Token ids as readable pieces of text.

A token may be a part of a character, and may decode to another text at the start than inside. So tokens are decoded
behind their neighbours, and those that make one character stay together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import regex

_LEAD = 8  # tokens to look at in front of the first one
_LONGEST_GROUP = 8
_AROUND = 24  # tokens to look at on both sides of a cut
_BROKEN = "\ufffd"  # how a part of a character decodes


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
        """Return groups that cover ids[start:end]. Tokens in front of `start` are only looked at."""
        end = len(ids) if end is None else end
        if self._tokenizer is None:
            return [Group(at, at + 1, f"{ids[at]} ") for at in range(start, end)]
        spans = self._whole_characters(ids, start, end)
        leads = [max(0, start - _LEAD), *(first for first, _ in spans)]
        return [
            Group(first, last, self._text_behind(ids[lead:first], ids[first:last]), ids[last - 1] in self._special)
            for lead, (first, last) in zip(leads, spans, strict=False)
        ]

    def elided(self, ids: Sequence[int], start: int, end: int, head: int, tail: int) -> list[tuple[int, int]]:
        """Return the ranges of ids[start:end] to show: all, or about `head` tokens at its start and `tail` at its end.

        A cut lies between two characters as readers see them.
        """
        first, last = self._border(ids, start + head, end), self._border(ids, end - tail, end)
        return [(start, end)] if end - start <= head + tail or first >= last else [(start, first), (last, end)]

    def _border(self, ids: Sequence[int], at: int, end: int) -> int:
        """Return the first place from `at` on that is not inside a grapheme cluster."""
        groups = self.groups(ids, max(at - _AROUND, 0), min(at + _AROUND, end))
        borders = {cluster.start() for cluster in regex.finditer(r"\X", "".join(group.text for group in groups))}
        length = 0
        for group in groups:
            if group.start >= at and length in borders:
                return group.start
            length += len(group.text)
        return at

    def _whole_characters(self, ids: Sequence[int], start: int, end: int) -> list[tuple[int, int]]:
        """Return the shortest spans that decode to whole characters; parts of one that never ends stand alone."""
        spans, first = [], start
        for last in range(start + 1, end + 1):
            if self._is_broken(ids[first:last]):
                later = next((at for at in range(first + 1, last) if not self._is_broken(ids[at:last])), None)
                if later is None and last < end and last - first < _LONGEST_GROUP:
                    continue
                if later is not None:
                    spans.append((first, later))
                    first = later
            spans.append((first, last))
            first = last
        return spans

    def _text_behind(self, lead: Sequence[int], ids: Sequence[int]) -> str:
        """Return what `ids` add to the text of `lead`."""
        before, whole, own = self._decode(lead), self._decode([*lead, *ids]), self._decode(ids)
        pairs = zip(before, whole, strict=False)
        text = whole[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]
        # Some decoders give up on a whole run of bytes because of a broken character in `lead`.
        return own if _BROKEN in text and _BROKEN not in own else text

    def _is_broken(self, ids: Sequence[int]) -> bool:
        return _BROKEN in self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
