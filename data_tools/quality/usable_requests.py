"""The gate on what a model writes as instructions: which items are requests that a whole document can answer."""

import re
from collections import Counter
from dataclasses import dataclass

from . import wrapping
from .language import asks, contained, entries, is_title, length_in_words, states, words
from .listed_requests import is_remark, list_items
from .useless_answers import longest_copy, searchable

LONGEST_WORDS = 60
_ECHOED_WORDS = 5  # in a row, of the prompt's own wording
_ECHOED_SHARE = 0.4  # of an item's 3-grams
_COPIED_SHARE = 0.8  # of an item's words, in one stretch of the chunk
_POINTS = re.compile("|".join(f"(?:{pattern})" for pattern in entries("points").values()), re.IGNORECASE)
# "The Northwest Passage": a name, not a noun.
_PASSAGE_AS_NAME = re.compile(r"\b(?!(?:The|This|That|A)\b)[A-Z]\w+ Passage\b")


class Wording:
    """The prompt's own words, without the chunk."""

    def __init__(self, text: str):
        self.text = text
        self.words = frozenset(words(text))
        self.searchable = searchable(text)


@dataclass(frozen=True)
class Pool:
    """The requests of one answer, and what was left out: (reason, item) in the order of the answer."""

    requests: list[str]
    rejected: list[tuple[str, str]]

    def counts(self) -> Counter[str]:
        return Counter(f"rejected_{reason}" for reason, _ in self.rejected)


def read_requests(text: str, count: int, chunk: str, wording: Wording, *, truncated: bool, check: bool = True) -> Pool:
    """At most `count` different requests from an answer, in order; with `count` 1, the whole answer is the request.

    Without `check`, every different item of the list is taken for a request.
    """
    source = searchable(chunk)
    found: dict[str, str] = {}
    rejected = []
    for item in list_items(text, count, truncated=truncated):
        request = wrapping.clean(wrapping.without_answer(wrapping.without_frames(item, wording.words)))
        key = " ".join(words(request))
        if key in found:
            reason: str | None = "repeated"
        else:
            reason = rejection(request, source, wording) if check else None
        if reason:
            rejected.append((reason, item))
        else:
            found[key] = request
    return Pool(list(found.values())[:count], rejected)


def rejection(request: str, source: str, wording: Wording) -> str | None:
    """Why an item is no request that can be used, or None. `source` is the chunk, made searchable."""
    if not any(character.isalpha() for character in request):
        return "no_letters"
    if is_remark(request):
        return "remark"
    if wrapping.is_answer(request):
        return "answer"
    length = length_in_words(request)
    if length < 2 and (request[-1] in "?？؟" or not asks(request)):
        return "too_short"
    if length > LONGEST_WORDS:
        return "too_long"
    if _echoes(request, wording):
        return "prompt_echo"
    if points_at_passage(request):
        return "points_at_passage"
    if not asks(request) and longest_copy(request, source, 2) >= _COPIED_SHARE * len(words(request)):
        return "copy"
    if states(request):
        return "statement"
    return "title" if is_title(request) else None


def points_at_passage(text: str) -> bool:
    """Whether a text names the passage that it was made from, or what stands above, as something before its reader.

    "The text", "the document" and "the story" may stay: in front of every instruction there is one. What may not is the
    name of a part ("this excerpt", "the paragraph"), and whatever is said to stand above or to have been given.
    """
    return _POINTS.search(_PASSAGE_AS_NAME.sub("", text.replace("’", "'"))) is not None


def _echoes(request: str, wording: Wording) -> bool:
    """Whether a long run of an item's words, or much of it in pieces, is the prompt's own wording."""
    found = words(request)
    per_word = len(found) / length_in_words(request)  # 2 where characters count as words
    enough = min(_ECHOED_WORDS * per_word, max(3, len(words(wording.text))))
    longest = longest_copy(request, wording.searchable, 3)
    return longest >= enough or (len(found) > _ECHOED_WORDS and contained(request, wording.text) >= _ECHOED_SHARE)
