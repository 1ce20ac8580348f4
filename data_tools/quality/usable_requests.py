"""Read the items of a model's answer to "write some requests, as a numbered list", and keep the usable ones.

Models number, bullet, label, quote, wrap and comment such lists in many ways. A list is taken to be the lines with one
kind of mark (see wrapping.py). What stands between them continues an item, or is a heading, an answer or a remark. An
item is usable if it is a request that a whole document can answer.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from . import wrapping
from .language import alternation, asks, contained, entries, is_title, length_in_words, needs_space, states, words
from .useless_answers import declines, longest_copy, searchable
from .wrapping import Line, clean, ends_sentence, ends_with_colon, read_line

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
        request = clean(wrapping.without_answer(wrapping.without_frames(item, wording.words)))
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


_LONGEST_ITEM = 200  # words of what may be an item

_CHATTER = re.compile(rf"{alternation('chatter')}(?![a-zà-ÿа-я])", re.IGNORECASE)


def list_items(text: str, count: int, *, truncated: bool) -> list[str]:
    """The items of a list in an answer, in order; with `count` 1, the whole answer is the item.

    The end of a truncated list is incomplete and left out. So are remarks around the list, headings and answers. An
    answer that refuses has no items.
    """
    text = wrapping.without_thinking(text)
    if declines(text):
        return []
    if count == 1:
        return [whole] if (whole := _whole(text)) else []
    if found := [item for item in map(clean, wrapping.markup_items(text)) if item]:
        return found
    lines = _aligned([read_line(part) for line in wrapping.plain_lines(text) for part in wrapping.split_numbered(line)])
    return _marked(lines, truncated) or _unmarked(lines, truncated)


def is_remark(text: str) -> bool:
    """Whether a text speaks to the asker, announces something, or is left over from markup."""
    return ends_with_colon(text) or _CHATTER.match(text) is not None or (text[0] in "[{<|" and text[-1] not in "?？؟")


def _may_be_item(text: str) -> bool:
    return (2 <= length_in_words(text) <= _LONGEST_ITEM or asks(text)) and not is_remark(text)


def _whole(text: str) -> str:
    """The answer without an announcement in front, and without the mark of its first line if no other line has one."""
    lines = text.splitlines()
    parsed = [read_line(line) for line in lines]
    while len(lines) > 1 and (not lines[0].strip() or ends_with_colon(lines[0].strip()) or _CHATTER.match(lines[0])):
        del lines[0], parsed[0]
    kinds = [line.kind for line in parsed]
    if kinds and kinds[0] not in ("", "heading", "answer") and kinds[0] not in kinds[1:]:
        lines[0] = parsed[0].body
    return clean("\n".join(lines))


@dataclass(kw_only=True)
class _Item:
    first: Line
    last: int  # the number of its last line
    more: list[Line] = field(default_factory=list)
    is_open: bool = True
    has_requests: bool = False  # below it, as marked sentences

    def takes(self, line: Line, *, after_blank: bool, is_behind_list: bool) -> bool:
        """Whether a line continues this item. Behind the list, a new sentence at the margin is a closing remark."""
        if line.kind in ("answer", "heading") or (line.kind and line.indent < self.first.indent):
            return False
        if not (self.first.body or self.more):
            return not line.kind
        if line.indent > self.first.indent:
            return True
        newest = self.more[-1].text if self.more else self.first.body
        return not after_blank and (bool(line.kind) or not is_behind_list or not ends_sentence(newest))

    def request(self) -> str:
        """The item's text without a bold title above it; "" if the item itself is the title of a list of requests."""
        first, bold = self.first.body, wrapping.is_title(self.first.body)
        if self.has_requests and (bold or ends_with_colon(first)):
            return ""
        text = "" if bold and self.more and not self.more[0].kind else first
        for line in self.more:
            gap = "\n" if line.kind else " " * needs_space(text, line.text)
            text = f"{text}{gap}{line.text}" if text else line.text
        return clean(text)


def _marked(lines: list[Line], truncated: bool) -> list[str]:
    """The items of the first reading with two or more that may be requests, else of the first with one."""
    best: list[str] = []
    cut = _end(lines) if truncated else None
    for starts in _readings(lines):
        items = [item for item in _read(lines, starts) if item.last != cut]
        found = [request for item in items if (request := item.request())]
        likely = sum(map(_may_be_item, found))
        if likely > 1:
            return found
        best = best or (found if likely else [])
    return best


def _aligned(lines: list[Line]) -> list[Line]:
    """The first line at the margin of its list: answers come without their leading spaces."""
    others = [line.indent for line in lines[1:] if lines[0].kind == line.kind != ""]
    return [replace(lines[0], indent=min(others)), *lines[1:]] if others else lines


def _readings(lines: list[Line]) -> Iterator[set[int]]:
    """Which lines may start the items: those with one kind of mark, the outer ones, then the ones further in."""
    for kind in ("number", "label", "letter", "bullet"):
        indents = {number: line.indent for number, line in enumerate(lines) if line.kind == kind}
        margin = min(indents.values(), default=0)
        outer = {number for number, indent in indents.items() if indent < margin + 2}
        yield from filter(None, (outer, set(indents) - outer))


def _read(lines: list[Line], starts: set[int]) -> list[_Item]:
    items: list[_Item] = []
    last_start = max(starts)
    after_blank = False
    for number, line in enumerate(lines):
        if number in starts:
            items.append(_Item(first=line, last=number))
        elif line.text and items and items[-1].is_open:
            item = items[-1]
            item.has_requests |= line.kind not in ("", "answer", "heading") and ends_sentence(line.text)
            item.is_open = item.takes(line, after_blank=after_blank, is_behind_list=number > last_start)
            if item.is_open:
                item.more.append(line)
                item.last = number
        after_blank = not line.text
    return items


def _unmarked(lines: list[Line], truncated: bool) -> list[str]:
    """One request per line; a line that begins in lower case continues an unfinished one. Titles are a last resort."""
    items: list[str] = []
    unfinished = False
    for line in lines:
        if line.text and line.kind not in ("answer", "heading"):
            if unfinished and line.text[0].islower():
                items[-1] += f" {line.text}"
            else:
                items.append(line.text)
        unfinished = line.kind == "" and line.text != "" and not ends_sentence(line.text)
    if truncated and lines and items and items[-1].endswith(lines[_end(lines)].text):
        items.pop()
    items = [item for item in map(clean, items) if item and not is_remark(item)]
    found = [item for item in items if _may_be_item(item)]
    titles = [item for line in lines if wrapping.is_title(line.body) and _may_be_item(item := clean(line.body))]
    return found or titles or items


def _end(lines: list[Line]) -> int:
    """The number of the last line that is not blank, or -1."""
    return max((number for number, line in enumerate(lines) if line.text), default=-1)
