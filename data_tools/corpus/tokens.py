"""Where the tokens of a long text end, without ever tokenising it whole.

Tokenizers take about 0.7 KB per token while they work, and get slower as a text gets longer. So a text is read through
windows that overlap. Two neighbours are joined where the same tokens stand on both sides of a cut in both of them.
Byte-pair encoding has one result in which every two neighbouring tokens are what they encode to on their own, and a
splitting pattern decides by nearby characters: so the joined result is that of the whole text.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

_WINDOW = 16384  # characters
_OVERLAP = 512  # of a window with the next one
_AGREED = 8  # tokens on each side of a join


def token_ends(
    encode: Callable[[str], Sequence[int]], text: str, *, window: int = _WINDOW, overlap: int = _OVERLAP
) -> Sequence[int]:
    """What `encode(text)` gives: the end of each token as an index into `text`.

    Where two windows cannot be joined, as within a very long run of one character, the whole text is encoded at once.
    """
    if len(text) <= window:
        return encode(text)
    ends = array("q")
    for start in range(0, len(text) - overlap, window - overlap):
        found = array("q", (start + end for end in encode(text[start : start + window])))
        join = _join(ends, found, start, start + overlap) if start else 0
        if join is None:
            return encode(text)
        del ends[bisect_right(ends, join) :]
        ends.extend(found[bisect_right(found, join) :])
    return ends


def _join(left: Sequence[int], right: Sequence[int], start: int, end: int) -> int | None:
    """The end of a token between two places that has the same _AGREED tokens on each side in both windows."""
    middle = bisect_left(left, (start + end) // 2)
    for index in sorted(
        range(bisect_left(left, start), bisect_right(left, end)), key=lambda index: abs(index - middle)
    ):
        around = left[index - _AGREED : index + _AGREED + 1]
        other = bisect_left(right, left[index])
        if len(around) == 2 * _AGREED + 1 and around == right[max(other - _AGREED, 0) : other + _AGREED + 1]:
            return left[index]
    return None
