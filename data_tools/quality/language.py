"""Texts as words and n-grams, for every script, and what is known of languages (languages.yaml).

The filters and the reading of instruction lists count in words. Scripts without spaces (Han, kana, Thai, Lao, Burmese,
Khmer) give one word per character. A text that no list of words knows neither asks nor states.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_TOKEN = re.compile(rf"{_WORD.pattern}|[^\w\s]")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
# Japanese mixes three scripts; a text in any of them is in the same language as one in another.
_SAME_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK"}


def words(text: str) -> list[str]:
    """Words without case, width and punctuation: "Who's ＡＤＡ?" gives who, s, ada."""
    return _WORD.findall(_folded(text))


def tokens(text: str) -> list[str]:
    """Words and single symbols, so that "x < -5" and "x > 5" differ."""
    return _TOKEN.findall(_folded(text))


def length_in_words(text: str) -> float:
    """Number of words, where two characters of a script without spaces make one word."""
    found = words(text)
    return len(found) - 0.5 * sum(1 for word in found if _UNSPACED_CHARACTER.match(word))


def similarity(left: str, right: str, size: int = 3) -> float:
    """Dice coefficient 2·|A ∩ B| / (|A| + |B|) of the multisets of token n-grams; 1 for texts with the same tokens.

    n is `size`, or the length of the shorter text where that is less. Without tokens on one side it is 0.
    """
    a, b = _ngrams(tokens(left), tokens(right), size)
    return 2 * (a & b).total() / (a.total() + b.total()) if a and b else 0.0


def contained(part: str, whole: str, size: int = 3) -> float:
    """|A ∩ B| / |A|: the share of `part`'s word n-grams that `whole` has too. n and 0 as in `similarity`."""
    a, b = _ngrams(words(part), words(whole), size)
    return (a & b).total() / a.total() if a and b else 0.0


def script(text: str) -> str:
    """The script of most letters, as in the names of Unicode: LATIN, CYRILLIC, CJK …; "" without letters."""
    names = (unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha())
    counts = Counter(_SAME_SCRIPT.get(name, name) for name in names)
    return counts.most_common(1)[0][0] if counts else ""


def needs_space(left: str, right: str) -> bool:
    """Whether two stretches of text are joined with a space: not between characters of East Asian width."""
    return not all(unicodedata.east_asian_width(side) in "WF" for side in (left[-1:] or " ", right[:1] or " "))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _ngrams(left: Sequence[str], right: Sequence[str], size: int) -> tuple[Counter, Counter]:
    """Count the n-grams of two sequences, for the same n; both are empty if one of them is."""
    n = min(size, len(left), len(right))
    if n == 0:
        return Counter(), Counter()
    a, b = (Counter(zip(*(side[start:] for start in range(n)), strict=False)) for side in (left, right))
    return a, b


def _load() -> dict[str, dict[str, str]]:
    """The entries of every language, without line breaks and with shared parts written out."""
    content = yaml.safe_load(Path(__file__).with_name("languages.yaml").read_bytes())
    found: dict[str, dict[str, str]] = {}
    for name, entries in content.items():
        shared = {f"{{{key}}}": value.replace("\n", "") for key, value in entries.pop("shared", {}).items()}
        found[name] = {kind: text.replace("\n", "") for kind, text in entries.items()}
        for key, value in shared.items():
            found[name] = {kind: text.replace(key, value) for kind, text in found[name].items()}
    return found


_LANGUAGES = _load()


def entries(kind: str) -> dict[str, str]:
    """The entry of that kind of every language that has one."""
    return {name: own[kind] for name, own in _LANGUAGES.items() if kind in own}


def alternation(kind: str) -> str:
    """A regular expression for the entries of one kind in all languages."""
    return f"(?:{'|'.join(entries(kind).values())})"


QUESTION_LABEL = alternation("question_label")
ANSWER_LABEL = alternation("answer_label")

_SMALL = {name: frozenset(text.split()) for name, text in entries("small").items()}
_STATES = {name: frozenset(text.split()) for name, text in entries("states").items()}
_SCRIPTS = {"CYRILLIC": "ru", "HANGUL": "ko", "ARABIC": "ar"}
_KANA = re.compile("[\u3040-\u30ff]")
_QUESTION = re.compile(r"[?？؟](?=[\s*_)\]）」』”’\"'»]*(?:$|\n))|[?？؟](?=[\s*_)\]）]+\S)|¿|[？؟](?=\w)")
_CLAUSE = r"(?:^|(?<=[.!?;:,…\n\"“«(—–]))[\s\"“«(*_¡-]*"
_ANYWHERE = ("zh", "ja", "ko", "ar")  # where words are not set apart, or come in any order
_ASKS = {
    name: re.compile(asks, re.MULTILINE)
    if name in _ANYWHERE
    else re.compile(_CLAUSE + f"(?:{asks})", re.IGNORECASE | re.MULTILINE)
    for name, asks in entries("asks").items()
}
_ENDS_FLAT = re.compile(r"[.。।][*_\"'”’»」』)）]*$")
_ENDS = re.compile(r"[.。।!！?？؟…:：;][*_)\"'”’»」』）]*$")
_LONGEST_TITLE = 8  # words
_WH = re.compile(r"\b(?:who|what|why|how|which|when|where|whether)\b", re.IGNORECASE)
# "Anna repaired …", "Captain Bell was …"
_NAMED = re.compile(
    r"[^\W\d_a-z]\w*(?: \w+)? (?:is|was|were|are|had|has|have|will|would|could|can|went|left|said|wrote|came|made|"
    r"took|gave|became|began|saw|found|got|told|knew|kept|lost|sold|bought|built|\w{2,}ed)\b"
)
_TEXT = re.compile(
    r"\b(?:texts?|documents?|passages?|articles?|excerpts?|stor(?:y|ies)|chapters?|book|documentos?|textos?|artículos?|"
    r"documento|testo|textes?|récit|dokument\w*|text(?:es|en)?|geschichte|artikel|документ\w*|текст\w*|стать\w*)\b|"
    r"文档|文檔|文本|文章|文中|本文|文書|テキスト|문서|본문|글[에의을은]|텍스트|النص|المستند|المقال",
    re.IGNORECASE,
)


def language(text: str) -> str:
    """Such as "en" or "zh"; "" where no language has more of its small words in the text than any other."""
    writing = script(text)
    if writing == "CJK":
        return "ja" if _KANA.search(text) else "zh"
    if writing != "LATIN":
        return _SCRIPTS.get(writing, "")
    found = words(text)
    counts = {name: sum(word in small for word in found) for name, small in _SMALL.items()}
    if "¿" in text or "¡" in text:
        counts["es"] += 2
    best = max(counts.values())
    leading = [name for name, count in counts.items() if count == best > 0]
    return leading[0] if len(leading) == 1 else ""


def asks(text: str) -> bool:
    """Whether some clause of a text is a question or a command."""
    if _QUESTION.search(text):
        return True
    name = language(text)
    plain = text.replace("’", "'")
    if name:
        return _ASKS[name].search(plain) is not None
    return script(text) == "LATIN" and any(_ASKS[name].search(plain) for name in _SMALL)


def states(text: str) -> bool:
    """Whether a text that does not ask is a statement, as far as its language shows that."""
    name = language(text)
    if not name or asks(text):
        return False
    if name not in _STATES:
        return _ENDS_FLAT.search(text) is not None
    if next(iter(words(text)), "") in _STATES[name]:
        return True
    return name == "en" and _NAMED.match(text) is not None and not _WH.search(text)


def is_title(text: str) -> bool:
    """Whether a text that does not ask is a few words without an end, such as the heading of a topic."""
    return _ENDS.search(text) is None and length_in_words(text) <= _LONGEST_TITLE and not asks(text)


def names_text(text: str) -> bool:
    """Whether a text names the document, the article or the like, by a noun for what can be read."""
    return _TEXT.search(text) is not None
