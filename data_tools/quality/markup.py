"""Lists that a model wrote as JSON or in tags, and its plain lines without such wrapping."""

import json
import re

from .wording import QUESTION_LABEL

_NAME = rf"(?:(?:{QUESTION_LABEL}|li)[ _-]?\d{{0,2}}|\d{{1,2}})"
_THINKING = re.compile(r"\A.*</think(?:ing)?>|<(think(?:ing)?|reasoning)>.*\Z", re.IGNORECASE | re.DOTALL)
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


def without_thinking(text: str) -> str:
    """Without what a reasoning model writes before its answer."""
    return _THINKING.sub("", text).strip()


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
