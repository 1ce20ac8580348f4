"""Which requests begin with the same tokens, so that these need to be computed once: a tree over sorted requests.

Pure lists of token ids: the engine computes along the tree, and an estimate counts along it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

# A shared beginning is a pass of its own, and breaks up batches: worth it from these savings on, in tokens and as a
# share of all tokens behind what is shared already.
LEAST_SAVED = 512
LEAST_SHARE = 0.2
# Longest rest behind a shared beginning: its attention needs a mask of rest x whole, which a plain prompt does not.
LONGEST_REST = 4096


@dataclass(frozen=True)
class Branch:
    """Requests whose first `length` tokens are the same: those that just go on, and groups that share still more."""

    length: int
    own: list[int] = field(default_factory=list)
    inner: list["Branch"] = field(default_factory=list)

    def members(self) -> Iterator[int]:
        yield from self.own
        for branch in self.inner:
            yield from branch.members()


def plan(sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> Branch:
    """Return the tree over all sequences; of sequence i at most `limits[i]` tokens, fewer than it has, are shared."""
    # Bytes in this order sort as the numbers do, in a fraction of a list's memory.
    names = [np.asarray(sequence, dtype=">u4").tobytes() for sequence in sequences]
    order = sorted(range(len(sequences)), key=names.__getitem__)
    root = Branch(0)
    pending = [(root, order)] if order else []
    while pending:
        parent, group = pending.pop()
        if len(group) == 1:
            parent.own.append(group[0])
            continue
        common = _common(names[group[0]], names[group[-1]])
        shared = min(common, *(limits[index] for index in group))
        near = [index for index in group if len(sequences[index]) - shared <= LONGEST_REST]
        branch = parent
        if _worth_it(shared - parent.length, [len(sequences[index]) - parent.length for index in near]):
            branch = Branch(shared)
            parent.inner.append(branch)
            parent.own.extend(sorted(set(group) - set(near)))
            group = near
        pending += [(branch, part) for part in _parts(sequences, group, common)]
    _sort(root, sequences)
    return root


def segments(sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges [from, to) of positions that are computed: each shared beginning once, then every rest."""
    found: list[tuple[int, int]] = []
    pending = [(0, plan(sequences, limits))]
    while pending:
        before, branch = pending.pop()
        found += [(before, branch.length)] if branch.length > before else []
        found += [(branch.length, len(sequences[index])) for index in branch.own]
        pending += [(branch.length, inner) for inner in branch.inner]
    return found


def _worth_it(shared: int, lengths: list[int]) -> bool:
    saved = (len(lengths) - 1) * shared
    return saved >= max(LEAST_SAVED, LEAST_SHARE * sum(lengths))


def _common(first: bytes, last: bytes) -> int:
    """Count the tokens, of four bytes each, with which two sequences and all that sort between them begin."""
    low, high = 0, min(len(first), len(last)) // 4
    while low < high:  # by halves: slices compare fast
        middle = (low + high + 1) // 2
        if first[4 * low : 4 * middle] == last[4 * low : 4 * middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _parts(sequences: Sequence[Sequence[int]], group: list[int], common: int) -> list[list[int]]:
    """Split sorted sequences where they go on differently behind `common` tokens; those that end there are single."""
    parts: list[list[int]] = []
    last: int | None = None
    for index in group:
        token = sequences[index][common] if len(sequences[index]) > common else None
        if not parts or token is None or token != last:
            parts.append([])
        parts[-1].append(index)
        last = token
    return parts


def _sort(root: Branch, sequences: Sequence[Sequence[int]]) -> None:
    """Long groups first, so that a lack of memory shows at once; own requests in the order in which they were given."""
    pending = [root]
    while pending:
        branch = pending.pop()
        branch.own.sort()
        branch.inner.sort(key=lambda inner: (-max(len(sequences[index]) for index in inner.members()), inner.length))
        pending += branch.inner
