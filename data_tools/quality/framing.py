"""What models put around a request: "One request is: …", "Third question:", "Reasons and connections –", an answer."""

import re
import unicodedata

from .asking import asks
from .wording import ANSWER_LABEL, CATEGORY, FRAME, ORDINAL, QUESTION_LABEL

_INLINE_ANSWER = re.compile(
    rf"(?<=[.?!。？！؟])\s*[(\[（]?[*_]*{ANSWER_LABEL}[*_]*\s*[:：].*", re.IGNORECASE | re.DOTALL
)
_QUOTES = ('""', "''", "“”", "‘’", "„“", "«»", "「」", "『』", "《》")
# What may stand around a request: a label, a topic ("**Theme:**"), emphasis, quotes.
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
_NAMES = re.compile(rf"(?:{QUESTION_LABEL}|{ORDINAL}|{CATEGORY})+", re.IGNORECASE)
_SMALL = re.compile(rf"(?:{QUESTION_LABEL}|{ORDINAL}|{CATEGORY}|{FRAME})+", re.IGNORECASE)
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
    rf"(?:(?:and|the|a|an|my|your|yet|finally|still)[ ,]+)*(?:{ORDINAL})(?: [a-z]+)? (?:{QUESTION_LABEL})"
    r"(?: that [^.?!:]{1,60}?)? (?:(?:is|was|would be|could be|might be|may be|can be)(?: to)?|"
    r"asks?(?: you| us| the reader)?(?: to)?) (?P<rest>\S.*)",
    re.IGNORECASE | re.DOTALL,
)
_QUESTION_MARK = re.compile(r"[?？؟]")
_CLOSERS = "\"'”’»」』)）*_"


def clean(text: str) -> str:
    """Without emphasis, quotes, topic and label around it, and without an answer given along with it."""
    text = _INLINE_ANSWER.sub("", text).strip()
    for frame in _FRAMES * 2:  # frames stand inside frames
        if match := frame.fullmatch(text):
            groups = match.groupdict()
            text = (groups["inside"] or groups["before"]).strip()
    return text


def without_frames(text: str, own_words: frozenset[str] = frozenset()) -> str:
    """A request without the ordinal, label or category that stands around it, in the words of its own prompt too."""
    for _ in range(4):  # frames stand inside frames
        if (inner := _inside(text, own_words)) == text:
            break
        text = inner
    return text


def is_answer(text: str) -> bool:
    """Whether a text is labelled as an answer."""
    return _ANSWER.match(text) is not None


def without_answer(text: str) -> str:
    """A question without the answer that was left behind it: sentences that ask for nothing, or a labelled one."""
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
    names = any(_NAMES.fullmatch(word) or (len(word) > 6 and word in own_words) for word in found)
    names = names or any(_UNSPACED.match(word) and _NAMES.search(word) for word in found)
    return names and (not asks(head) or asks(clean(rest)))
