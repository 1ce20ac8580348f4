"""Read the items out of a model's answer to "write some requests, as a numbered list".

Models number, bullet, label, quote, wrap and comment such lists in many ways. A list is taken to be the lines with one
kind of mark (see wrapping.py). What stands between them continues an item, or is a heading, an answer or a remark.
Whether an item is a request is decided in usable_requests.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from . import wrapping
from .language import alternation, asks, length_in_words, needs_space
from .useless_answers import declines
from .wrapping import Line, clean, ends_sentence, ends_with_colon, read_line

_LONGEST_WORDS = 200  # of what may be an item

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
    return (2 <= length_in_words(text) <= _LONGEST_WORDS or asks(text)) and not is_remark(text)


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


@dataclass
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
            items.append(_Item(line, number))
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
