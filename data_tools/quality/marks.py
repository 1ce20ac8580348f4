"""The grammar of a list's lines: indent, bullet?, (number | label | letter)?, body."""

import re
from dataclasses import dataclass

from .wording import ANSWER_LABEL, QUESTION_LABEL

_EMPHASIS = r"[*_`]{0,3}"
_ROMAN = r"[ivx]{1,5}"
_NUMBER = "|".join(
    (
        # Question 2: / **Task 3 (detail)** - / ### Request 4
        rf"{QUESTION_LABEL}\s*(?:no\.?|nr\.?|№|\#)?\s*\d{{1,2}}{_EMPHASIS}(?:\s*\([^()]{{1,40}}\))?{_EMPHASIS}"
        r"\s*(?:[\])）.:：、\-–—]|$)",
        r"[(\[（【]\s*\d{1,2}\s*[)\]）】][.:：]?",  # (2)
        rf"\d{{1,2}}{_EMPHASIS}(?:[.:](?!\d)|[)\]）、．：。]|\s*[–—]\s|\s?-\s)",  # 2.
        r"[①-⑳⑴-⒇❶-❿]|\d\ufe0f?\u20e3",
        r"第\s*[\d一二三四五六七八九十]{1,3}\s*[个個題题問问條条]*(?:问题|問題)?[:：、.．]?|[一二三四五六七八九十]{1,2}、",
    )
)
_MARKS = {
    "answer": rf"{ANSWER_LABEL}\s*(?:\d{{1,2}})?{_EMPHASIS}\s*[:：]",
    "number": _NUMBER,
    "label": rf"{QUESTION_LABEL}{_EMPHASIS}\s*[:：]",
    "letter": rf"\((?:[^\W\d_]|{_ROMAN})\)|(?:[^\W\d_]|{_ROMAN})\)|(?:[a-z]|{_ROMAN})\.(?=\s)",
}
_LINE = re.compile(
    r"(?P<indent>\s*)(?P<hashes>\#{1,6}\s+)?"
    r"(?:(?P<bullet>[*+·・](?=\s)|[-–—](?=\s|[^\W\d])|[•‣⁃▪▫■□●○◦◆◇►▸➢➤✓✔])\s*)?"
    rf"(?:{_EMPHASIS}(?:{'|'.join(f'(?P<{kind}>{pattern})' for kind, pattern in _MARKS.items())}){_EMPHASIS}\s*)?"
    r"(?P<body>.*)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.?!…。？！؟۔।][*_`\"'”’»」』)）]*$")
_COLON_END = re.compile(r"[:：][*_`]*$")
_BOLD = re.compile(r"(?:\*\*|__)?[^*]+(?:\*\*|__):?$")
_NEXT_NUMBER = re.compile(r"(?<=[.?!。？！؟])\s*(?=[(（]?(\d{1,2})[.)）、．：](?!\d))")


@dataclass(frozen=True)
class Line:
    """`kind` is the mark: "number", "label", "letter", "bullet" or "answer"; "heading" and "" have none.

    `body` is what follows the mark, `text` the whole line; both are "" in a blank line.
    """

    indent: int
    kind: str
    body: str
    text: str


def read_line(text: str) -> Line:
    match = _LINE.match(text)
    assert match is not None  # every part of the pattern may be empty
    kind = next((kind for kind in _MARKS if match[kind]), "bullet" if match["bullet"] else "")
    body, indent = match["body"].strip(), len(match["indent"].expandtabs(4))
    is_heading = is_title(body) or match["hashes"] or ends_with_colon(body)
    if not kind and not indent and is_heading and not ends_sentence(body):
        kind = "heading"
    return Line(indent, kind, body, text.strip())


def split_numbered(line: str) -> list[str]:
    """Break "1. Who? 2. Why? 3. When?" in front of the numbers that count on from 1."""
    starts, wanted = [0], 2
    for match in _NEXT_NUMBER.finditer(line) if read_line(line).kind == "number" else ():
        if int(match[1]) == wanted:
            starts.append(match.end())
            wanted += 1
    return [line[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def ends_sentence(text: str) -> bool:
    return _SENTENCE_END.search(text) is not None


def ends_with_colon(text: str) -> bool:
    return _COLON_END.search(text) is not None


def is_title(text: str) -> bool:
    """Bold as a whole and not a sentence."""
    return _BOLD.match(text) is not None and not ends_sentence(text)
