"""Recognise answers that copy their prompt instead of answering."""

from ..words import contained, words

_LEAST_REPEATED = 0.5  # of an instruction, for an answer that repeats it
_BREAK = "\n"  # stands between and around words, and in none of them


def searchable(text: str) -> str:
    """The words of a text in a form that `longest_copy` can search: without case and punctuation."""
    return _joined(words(text))


def longest_copy(answer: str, source: str, shortest: int) -> int:
    """Words in the longest stretch of `answer` that stands word for word in `source`; 0 below `shortest` ≥ 1 words.

    `source` comes from `searchable`. Each step lengthens the stretch or moves its beginning on, by half a stretch
    where the source holds nothing like it.
    """
    found = words(answer)
    start, length = 0, shortest
    while start + length <= len(found):
        if _joined(found[start : start + length]) in source:
            length += 1
        elif _joined(found[start + length // 2 : start + length]) in source:
            start += 1
        else:  # no stretch that covers this half can be there
            start += length // 2 + 1
    return length - 1 if length > shortest else 0


def repeats(answer: str, instruction: str, share: float) -> bool:
    """Whether at least `share` of an answer's 3-grams are the instruction's, and half of the instruction's are its own.

    The second keeps answers that are right in the instruction's words: "the old one" to "The old one or the new one?".
    """
    return contained(answer, instruction) >= share and contained(instruction, answer) >= _LEAST_REPEATED


def _joined(found: list[str]) -> str:
    return _BREAK + _BREAK.join(found) + _BREAK
