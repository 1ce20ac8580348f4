"""Cut a document into chunks of at most N tokens, at the best place near the limit, and draw some of them.

A long text is never tokenised whole: tokenizers need about 0.7 KB per token and get slower with the length of a text.
So a text is encoded in overlapping windows. Two neighbouring windows are joined at a cut that has the same tokens on
both sides in both of them. Byte-pair encoding has one result in which every two neighbouring tokens are what they
encode to on their own, and a splitting pattern decides by nearby characters: so the joined result equals that of the
whole text.
"""

import random
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from .segmentation import SEGMENTATIONS, Domain, best_cut, trimmed, with_line_feeds

_WINDOW = 16384  # characters
_OVERLAP = 512  # of a window with the next one
_AGREED = 8  # tokens on each side of a join
# The rest of a document after its last whole chunk becomes a chunk only if it is at least this long.
_SHORTEST_REST = 0.25


def token_ends(
    encode: Callable[[str], Sequence[int]], text: str, *, window: int = _WINDOW, overlap: int = _OVERLAP
) -> Sequence[int]:
    """Return the end of each token of `encode(text)`, as an index into `text`.

    If two windows cannot be joined, as in a very long run of one character, the whole text is encoded at once.
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
    """Return the end of a token between two places. Both windows have the same _AGREED tokens on each side of it."""
    middle = bisect_left(left, (start + end) // 2)
    for index in sorted(
        range(bisect_left(left, start), bisect_right(left, end)), key=lambda index: abs(index - middle)
    ):
        around = left[index - _AGREED : index + _AGREED + 1]
        other = bisect_left(right, left[index])
        if len(around) == 2 * _AGREED + 1 and around == right[max(other - _AGREED, 0) : other + _AGREED + 1]:
            return left[index]
    return None


def chunk_document(
    text: str,
    token_ends: Sequence[int],
    count_tokens: Callable[[str], int],
    limit: int,
    domain: Domain = "prose",
) -> list[str]:
    """Return all chunks of a document, in order: exact substrings without white space at their ends.

    Chunks of code begin with the indentation of their first line. `token_ends` holds the end of each token as an index
    into `text`; `count_tokens` counts a chunk on its own, which may differ by a token or two from its share of the
    document; every chunk counts at most `limit` tokens.
    """
    segmentation, lines = SEGMENTATIONS[domain], with_line_feeds(text)
    chunks: list[str] = []
    start, token = 0, 0
    while token < len(token_ends):
        rest = len(token_ends) - token
        if chunks and rest < _SHORTEST_REST * limit:
            break
        end = len(text) if rest <= limit else best_cut(lines, start, token_ends[token + limit - 1], segmentation)
        chunk = text[trimmed(lines, start, end, segmentation)]
        while (excess := count_tokens(chunk) - limit) > 0:
            kept = max(1, _tokens_before(token_ends, token, end) - token - excess)
            end = best_cut(lines, start, min(token_ends[token + kept - 1], end - 1), segmentation)
            chunk = text[trimmed(lines, start, end, segmentation)]
        if chunk:
            chunks.append(chunk)
        start, token = end, _tokens_before(token_ends, token, end)
    return chunks


def draw_chunks(chunks: list[str], count: int, seed: int) -> list[str]:
    """Return at most `count` chunks, drawn without replacement, in document order."""
    if len(chunks) <= count:
        return chunks
    return [chunks[index] for index in sorted(random.Random(seed).sample(range(len(chunks)), count))]


def _tokens_before(token_ends: Sequence[int], first: int, end: int) -> int:
    """Return the first token after `first` that ends after `end`: at least one more, so that cutting terminates."""
    return max(bisect_right(token_ends, end, first), first + 1)
