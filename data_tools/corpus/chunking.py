"""Cut a document into chunks of at most N tokens, at the kindest place near the limit, and draw some of them."""

import random
import re
from collections.abc import Callable

# From the best place to cut to the worst: between paragraphs, sentences, lines, words. A cut is behind what a match
# holds besides white space; the white space itself may lie beyond the limit.
_BOUNDARIES = (
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]"),
    re.compile(r"\n"),
    re.compile(r"\s+"),
)
# A boundary in the first part of a chunk is not worth the tokens that a cut there gives away.
_EARLIEST_CUT = 0.5
# The rest of a document after its last whole chunk makes a chunk of its own only if it is at least this long.
_SHORTEST_REST = 0.25


def chunk_document(text: str, token_ends: list[int], count_tokens: Callable[[str], int], limit: int) -> list[str]:
    """All chunks of a document, in order: exact substrings without white space at their ends.

    `token_ends` holds the end of each token as an index into `text`; `count_tokens` counts a chunk on its own, which
    may differ by a token or two from its share of the document; every chunk counts at most `limit` tokens.
    """
    chunks: list[str] = []
    start, token = 0, 0
    while token < len(token_ends):
        rest = len(token_ends) - token
        if chunks and rest < _SHORTEST_REST * limit:
            break
        end = len(text) if rest <= limit else _cut(text, start, token_ends[token + limit - 1])
        chunk = text[start:end].strip()
        while (excess := count_tokens(chunk) - limit) > 0:
            kept = max(1, _tokens_before(token_ends, token, end) - token - excess)
            end = _cut(text, start, min(token_ends[token + kept - 1], end - 1))
            chunk = text[start:end].strip()
        if chunk:
            chunks.append(chunk)
        start, token = end, _tokens_before(token_ends, token, end)
    return chunks


def draw_chunks(chunks: list[str], count: int, seed: int) -> list[str]:
    """At most `count` chunks, drawn without replacement, in document order."""
    if len(chunks) <= count:
        return chunks
    return [chunks[index] for index in sorted(random.Random(seed).sample(range(len(chunks)), count))]


def _cut(text: str, start: int, limit: int) -> int:
    """The best place to end a chunk that starts at `start` and may reach `limit` (an index into `text`)."""
    earliest = start + int((limit - start) * _EARLIEST_CUT)
    for boundary in _BOUNDARIES:
        matches = boundary.finditer(text, earliest, limit + 2)
        ends = [end for match in matches if (end := match.start() + len(match[0].rstrip())) <= limit]
        if ends:
            return ends[-1]
    return limit


def _tokens_before(token_ends: list[int], first: int, end: int) -> int:
    """The first token, from `first` on, that ends behind `end`; at least one token further, so that cutting ends."""
    token = first
    while token < len(token_ends) and token_ends[token] <= end:
        token += 1
    return max(token, first + 1)
