"""Recognise answers that teach nothing: those that refuse, copy their prompt, or got stuck in a loop."""

import re
import zlib

import numpy as np

from .language import contained, entries, words

# … unless the sentence goes on to give it.
_BUT = (
    r"(?:\b(?:but|however|although|though|only that|pero|sin embargo|mais|aber|jedoch|mas|porém|ma|però|но|"
    r"однако)\b|但|しかし|が、)"
)

_LONGEST_SENTENCE = 400  # characters, to look no further
_LEAST_REPEATED = 0.5  # of an instruction, for an answer that repeats it
_BREAK = "\n"  # stands between and around words, and in none of them
_LEAST_REPEATS = 4
_LONGEST_PERIOD = 200  # words
_LEAST_BYTES = 400  # zlib's own overhead makes the ratio of shorter texts meaningless

# Where a sentence begins; a sentence quoted in another one does not count.
_START = r"(?:\A|(?<=[.!?:。！？：\n]))[ \t*_#>-]*"


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile(f"{_START}(?:{'|'.join(alternatives)})", re.IGNORECASE)


_DECLINE = _pattern(*entries("declines").values())
# "Unfortunately, …", "Based on the given text, …"
_OPENING = r"(?:[^.!?。！？\n]{1,50}[,，、،]\s*)?"
_ABSENCE = _pattern(*(f"{_OPENING}(?:{absent})(?![^.!?。！？\\n]*{_BUT})" for absent in entries("absent").values()))


def declines(text: str, window: int = 120) -> bool:
    """Whether one of the sentences that begin in the first `window` characters refuses to answer."""
    return _begins(_DECLINE, text, window)


def is_refusal(text: str, window: int = 120) -> bool:
    """Whether such a sentence refuses, or says that the text does not hold the answer and leaves it at that."""
    return _begins(_DECLINE, text, window) or _begins(_ABSENCE, text, window)


def _begins(pattern: re.Pattern[str], text: str, window: int) -> bool:
    match = pattern.search(text.strip()[: window + _LONGEST_SENTENCE].replace("’", "'"))
    return match is not None and match.start() < window


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


def longest_loop(text: str) -> int:
    """Words in the longest stretch that repeats one passage four times or more without a break; 0 without such.

    A stretch of L words w_s … w_{s+L-1} repeats a passage of p words if w_i = w_{i-p} for s + p ≤ i < s + L and L ≥ 4p,
    with p ≤ 200. A number by itself is no passage, so that columns of zeros are no loop.
    """
    found = words(text)
    index = {word: number for number, word in enumerate(dict.fromkeys(found))}
    ids = np.array([index[word] for word in found])
    longest = 0
    for period in range(1, min(_LONGEST_PERIOD, len(ids) // _LEAST_REPEATS) + 1):
        start, run = _longest_run(ids[period:] == ids[:-period])
        length = run + period
        if length >= max(_LEAST_REPEATS * period, longest + 1) and not _is_numbers(found[start : start + period]):
            longest = length
    return longest


def compressed_share(text: str) -> float:
    """Bytes of the text compressed by zlib over its bytes in UTF-8: 0.4 to 0.6 for prose, far less for loops.

    1 for texts of fewer than 400 bytes.
    """
    raw = text.encode("utf-8", "surrogatepass")
    return len(zlib.compress(raw, 9)) / len(raw) if len(raw) >= _LEAST_BYTES else 1.0


def _longest_run(hits: np.ndarray) -> tuple[int, int]:
    """(start, length) of the longest stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hits, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    best = int(lengths.argmax())
    return int(edges[2 * best]), int(lengths[best])


def _is_numbers(passage: list[str]) -> bool:
    return all(word.isdigit() for word in passage)
