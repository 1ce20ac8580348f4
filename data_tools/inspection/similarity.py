"""What two answers have in common, token by token."""

from collections.abc import Sequence
from difflib import SequenceMatcher

Ids = Sequence[int]
_SHORTEST_RUN = 2  # tokens in a row


def similarity(left: Ids, right: Ids) -> float:
    """Return 2 · L / (len(left) + len(right)) with L the tokens of a longest common subsequence.

    1 is equal, 0 is nothing shared; two empty answers are equal. Exact, in len(left) · len(right) / 64 steps of a
    machine word: two answers of 4,000 tokens take milliseconds.
    """
    if not len(left) + len(right):
        return 1.0
    # Hyyrö 2004: bit i of the row is 0 where left[: i + 1] has a longer common subsequence with what was read of
    # `right` than left[:i].
    places: dict[int, int] = {}
    for index, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << index
    every = (1 << len(left)) - 1
    row = every
    for token in right:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & every
    return 2 * (len(left) - row.bit_count()) / (len(left) + len(right))


def differences(left: Ids, right: Ids) -> tuple[list[bool], list[bool]]:
    """Return for every token of both answers whether it belongs to a part in which they differ.

    A lone shared token between two such parts counts as different: it is chance, and would tear them apart.
    """
    differ = [True] * len(left), [True] * len(right)
    for start_left, start_right, length in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        at_start = start_left == start_right == 0
        at_end = start_left + length == len(left) and start_right + length == len(right)
        if length >= _SHORTEST_RUN or at_start or at_end:
            differ[0][start_left : start_left + length] = [False] * length
            differ[1][start_right : start_right + length] = [False] * length
    return differ
