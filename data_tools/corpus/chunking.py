"""Cut a document into chunks of at most N tokens, at the kindest place near the limit, and draw some of them."""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence

from .domains import Domain
from .segmentation import SEGMENTATIONS, best_cut, trimmed, with_line_feeds

# The rest of a document after its last whole chunk makes a chunk of its own only if it is at least this long.
_SHORTEST_REST = 0.25


def chunk_document(
    text: str,
    token_ends: Sequence[int],
    count_tokens: Callable[[str], int],
    limit: int,
    domain: Domain = "prose",
) -> list[str]:
    """All chunks of a document, in order: exact substrings without white space at their ends.

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
    """At most `count` chunks, drawn without replacement, in document order."""
    if len(chunks) <= count:
        return chunks
    return [chunks[index] for index in sorted(random.Random(seed).sample(range(len(chunks)), count))]


def _tokens_before(token_ends: Sequence[int], first: int, end: int) -> int:
    """The first token, from `first` on, that ends behind `end`; at least one token further, so that cutting ends."""
    return max(bisect_right(token_ends, end, first), first + 1)
