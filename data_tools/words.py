"""Texts as words and n-grams, for every script: what the filters and the reading of instruction lists count in.

Scripts without spaces (Han, kana, Thai, Lao, Burmese, Khmer) give one word per character.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

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
