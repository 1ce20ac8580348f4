"""Remove what models put around the requests of a list.

A list is written as JSON, in tags, or in lines of the form: indent, bullet?, (number | label | letter)?, body. Around a
request stand labels ("Third question:", "Reasons and connections –"), emphasis, quotes, or an answer behind it.
"""

import json
import re
import unicodedata
from dataclasses import dataclass

from .language import ANSWER_LABEL, QUESTION_LABEL, alternation, asks

_ORDINAL, _CATEGORY, _FRAME = alternation("ordinal"), alternation("category"), alternation("frame")

# Markup
_NAME = rf"(?:(?:{QUESTION_LABEL}|li)[ _-]?\d{{0,2}}|\d{{1,2}})"
_THINKING = re.compile(r"\A.*</think(?:ing)?>|<(think(?:ing)?|reasoning)>.*\Z", re.IGNORECASE | re.DOTALL)
_THOUGHT = re.compile(
    r"\A\s*(?:<(?:think(?:ing)?|reasoning)>|\[THINK\])|</think(?:ing)?>|\[/THINK\]", re.IGNORECASE | re.DOTALL
)
_ELEMENT = re.compile(
    rf"<(?P<tag>{_NAME})(?:\s[^<>]*)?>(?P<content>(?:(?!</?{_NAME}\b).)*)</(?P=tag)\s*>", re.IGNORECASE | re.DOTALL
)
_TAG = re.compile(
    rf"</?(?:{_NAME}|list|[ou]l|p|br|b|i|strong|em|output|response|answer)(?:\s[^<>]*)?/?>", re.IGNORECASE
)
_JSON = re.compile(r"^[ \t]*[\[{]\s*(?:[\"\[{]|$).*", re.MULTILINE | re.DOTALL)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(:)?', re.DOTALL)
_KEY = re.compile(rf"{_NAME}|text|content", re.IGNORECASE)
_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})\w*\s*")
_RULE = re.compile(r"[\W_]*")  # a line without letters and digits
_QUOTED = re.compile(r"(?:\s?>)+ ?")
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

# Marks of lines
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

# Frames
_INLINE_ANSWER = re.compile(
    rf"(?<=[.?!。？！؟])\s*[(\[（]?[*_]*{ANSWER_LABEL}[*_]*\s*[:：].*", re.IGNORECASE | re.DOTALL
)
_QUOTES = ('""', "''", "“”", "‘’", "„“", "«»", "「」", "『』", "《》")
# What may surround a request: a label, a topic ("**Theme:**"), emphasis, quotes.
_FRAMES = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"{QUESTION_LABEL}[*_]*\s*[:：]\s*(?P<inside>.+)",
        r"(?:\*\*|__)[^*_]{1,60}(?::(?:\*\*|__)|(?:\*\*|__):)\s*(?P<inside>.+)",
        r"(?P<mark>\*{1,3}|_{1,3}|`{1,3})(?P<inside>(?:(?!(?P=mark)).)+)(?P=mark)",
        r"\*\*(?P<inside>[^*]+)|(?P<before>[^*]+)\*\*",
        *(rf"{pair[0]}(?P<inside>[^{pair}]+){pair[1]}[,;、，.。]?" for pair in _QUOTES),
    )
)
_ANSWER = re.compile(rf"{ANSWER_LABEL}\s*\d*\s*[:：]", re.IGNORECASE)
_LONGEST_HEAD = 12  # words
_RUN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_LABELS = re.compile(rf"(?:{QUESTION_LABEL}|{_ORDINAL}|{_CATEGORY})+", re.IGNORECASE)
_SMALL = re.compile(rf"(?:{QUESTION_LABEL}|{_ORDINAL}|{_CATEGORY}|{_FRAME})+", re.IGNORECASE)
_HEAD_AND_REST = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"(?P<head>[^:：\n]{1,120})[:：]\s*(?P<rest>\S.*)",
        r"(?P<head>[^–—\n]{1,80}?)\s*(?:[–—]|\s-\s)\s*(?P<rest>\S.*)",
        r"(?P<head>[^\"“«「\n]{1,120}?)[\s,，]*(?P<rest>[\"“«「].*[\"”»」][.。]?)",
        r"[(\[【（](?P<head>[^()\[\]【】（）\n]{1,80})[)\]】）][\s:：–—-]*(?P<rest>\S.*)",
        r"(?P<rest>.*\S)\s*[(\[（](?P<head>[^()\[\]（）\n]{1,80})[)\]）][.。]?",
    )
)
# "A third request is to compare …"
_IS_TO = re.compile(
    rf"(?:(?:and|the|a|an|my|your|yet|finally|still)[ ,]+)*(?:{_ORDINAL})(?: [a-z]+)? (?:{QUESTION_LABEL})"
    r"(?: that [^.?!:]{1,60}?)? (?:(?:is|was|would be|could be|might be|may be|can be)(?: to)?|"
    r"asks?(?: you| us| the reader)?(?: to)?) (?P<rest>\S.*)",
    re.IGNORECASE | re.DOTALL,
)
_QUESTION_MARK = re.compile(r"[?？؟]")
_CLOSERS = "\"'”’»」』)）*_"


def without_thinking(text: str) -> str:
    """Remove what a reasoning model writes before its answer."""
    return _THINKING.sub("", text).strip()


def holds_thought(text: str) -> bool:
    """Whether an answer begins with a thought, or holds the end of one."""
    return _THOUGHT.search(text) is not None


def markup_items(text: str) -> list[str]:
    """The strings of a JSON list (or of the objects in it), else the contents of repeated tags, else nothing.

    Only complete strings and elements count, so an answer that was cut off gives those before the cut.
    """
    if (start := _JSON.search(text)) and (items := _json_strings(start[0])):
        return items
    elements = [match["content"].strip() for match in _ELEMENT.finditer(text)]
    return elements if len(elements) > 1 else []


def plain_lines(text: str) -> list[str]:
    """Lines without tags, code fences, quotation marks of mails and invisible characters; rulers become blank."""
    lines = _TAG.sub("", _INVISIBLE.sub("", text)).splitlines()
    unquoted = (_QUOTED.sub("", line, count=1) if _QUOTED.match(line) else line for line in lines)
    return ["" if _RULE.fullmatch(line) else line for line in unquoted if not _FENCE.fullmatch(line)]


def _json_strings(text: str) -> list[str]:
    """String values without a key, or with a key like "question"."""
    end = max(text.rfind("]"), text.rfind("}"))
    items, wanted = [], True
    for match in _STRING.finditer(text, 0, end if end >= 0 else len(text)):
        if match[2]:
            wanted = _KEY.fullmatch(match[1]) is not None
        elif wanted:
            items.append(_unescaped(match[1]))
    return items


def _unescaped(string: str) -> str:
    try:
        return json.loads(f'"{string}"', strict=False)
    except json.JSONDecodeError:  # such as the \d of a regular expression, which JSON does not know
        return string


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


def clean(text: str) -> str:
    """Remove emphasis, quotes, topic and label around a text, and an answer behind it."""
    text = _INLINE_ANSWER.sub("", text).strip()
    for frame in _FRAMES * 2:  # frames stand inside frames
        if match := frame.fullmatch(text):
            groups = match.groupdict()
            text = (groups["inside"] or groups["before"]).strip()
    return text


def without_frames(text: str, own_words: frozenset[str] = frozenset()) -> str:
    """Remove ordinal, label or category around a request, also where they are in the words of its own prompt."""
    for _ in range(4):  # frames stand inside frames
        if (inner := _inside(text, own_words)) == text:
            break
        text = inner
    return text


def is_answer(text: str) -> bool:
    """Whether a text is labelled as an answer."""
    return _ANSWER.match(text) is not None


def without_answer(text: str) -> str:
    """Remove the answer behind a question: a labelled one, or sentences that ask for nothing."""
    text = _INLINE_ANSWER.sub("", text).strip()
    marks = list(_QUESTION_MARK.finditer(text))
    if not marks:
        return text
    end = marks[-1].end()
    closers = len(text[end:]) - len(text[end:].lstrip(_CLOSERS))
    if closers and text[end] in "\"'”’»」』" and text[0] not in "\"'“‘«„「『":
        return text  # the question is quoted
    tail = text[end + closers :]
    answer = tail.strip()
    # A list or an option below the question belongs to it; so does what goes on in lower case.
    if not answer or "\n" in tail or answer[0].islower() or asks(answer) or not re.search(r"\w", answer):
        return text
    return text[: end + closers]


def _inside(text: str, own_words: frozenset[str]) -> str:
    for pattern in _HEAD_AND_REST:
        if (match := pattern.fullmatch(text)) and _is_frame(match["head"], match["rest"], own_words):
            return clean(match["rest"])
    if match := _IS_TO.fullmatch(text):
        rest = clean(match["rest"])
        return rest[:1].upper() + rest[1:]
    return text


def _is_frame(head: str, rest: str, own_words: frozenset[str]) -> bool:
    """Whether all of a head's words are those of frames, or of the prompt; and one of them names a request."""
    found = _RUN.findall(unicodedata.normalize("NFKC", head).casefold())
    if not found or len(found) > _LONGEST_HEAD or not all(_SMALL.fullmatch(w) or w in own_words for w in found):
        return False
    names = any(_LABELS.fullmatch(word) or (len(word) > 6 and word in own_words) for word in found)
    names = names or any(_UNSPACED.match(word) and _LABELS.search(word) for word in found)
    return names and (not asks(head) or asks(clean(rest)))
