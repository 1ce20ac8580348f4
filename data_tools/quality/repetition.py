"""Recognise answers that got stuck in a loop."""

import zlib

import numpy as np

from ..words import words

_LEAST_REPEATS = 4
_LONGEST_PERIOD = 200  # words
_LEAST_BYTES = 400  # zlib's own overhead makes the ratio of shorter texts meaningless


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
