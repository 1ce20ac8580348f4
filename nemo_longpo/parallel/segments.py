"""The order of the rows of one micro-batch, and which of them a context-parallel rank holds.

A micro-batch is one tree or several that see nothing of each other. A tree is a causal *trunk* and then branches that
all continue it: no branch for two full sequences side by side, two branches for chosen and rejected after a shared
prefix. The token layout and attention take the order of rows from here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch


def zigzag_rows(length: int, cp_size: int, cp_rank: int) -> torch.Tensor:
    """Return the rows of a causal sequence that a rank holds: chunks `r` and `2·cp − 1 − r` of `2·cp` equal ones.

    Megatron's context-parallel contract: every rank gets one early and one late chunk, so causal attention costs all
    ranks the same. `length` must be a multiple of `2·cp_size`, or any number if `cp_size` is 1.
    """
    if cp_size == 1:
        return torch.arange(length)
    assert length % (2 * cp_size) == 0, f"{length} rows do not split into 2 x {cp_size} chunks"
    chunks = torch.arange(length).view(2 * cp_size, -1)
    return torch.cat([chunks[cp_rank], chunks[2 * cp_size - 1 - cp_rank]])


@dataclass(frozen=True)
class Segments:
    """Rows `[trunk | branch | branch …]` of a whole tree, over all ranks.

    `trunk_rows` includes the trunk's padding, which follows its `trunk_tokens`; padding after the last branch counts as
    rows of that branch. A rank holds the trunk's zigzag rows, then a contiguous share of the branch rows.
    """

    trunk_rows: int
    trunk_tokens: int
    branch_rows: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return self.trunk_rows + sum(self.branch_rows)

    def rows_on_rank(self, cp_size: int, cp_rank: int) -> torch.Tensor:
        """Return the numbers of a rank's rows, in its order."""
        trunk = zigzag_rows(self.trunk_rows, cp_size, cp_rank)
        branches = torch.arange(self.trunk_rows, self.trunk_rows + sum(self.branch_rows))
        assert len(branches) % cp_size == 0, f"{len(branches)} branch rows do not split over {cp_size} ranks"
        return torch.cat([trunk, branches.view(cp_size, -1)[cp_rank]])

    def rows_per_rank(self, cp_size: int) -> tuple[int, int]:
        """Return how many trunk rows and how many branch rows every rank holds."""
        return self.trunk_rows // cp_size, sum(self.branch_rows) // cp_size

    def trunk_tokens_on_rank(self, cp_size: int, cp_rank: int) -> int:
        """Count the tokens among a rank's trunk rows; they come first, in its early chunk before its late one."""
        # Every layer calls this, so count chunks instead of half a million rows.
        if cp_size == 1:
            return self.trunk_tokens
        chunk, places = self.trunk_rows // (2 * cp_size), (cp_rank, 2 * cp_size - 1 - cp_rank)
        return sum(min(max(self.trunk_tokens - place * chunk, 0), chunk) for place in places)

    def branch_slices(self) -> list[slice]:
        """Return each branch's rows among the branch rows of all ranks."""
        ends = accumulate(self.branch_rows)
        return [slice(end - rows, end) for rows, end in zip(self.branch_rows, ends, strict=True)]


def rows_on_rank(trees: Sequence[Segments], cp_size: int, cp_rank: int) -> torch.Tensor:
    """Return the numbers of a rank's rows of a micro-batch, tree after tree."""
    starts = accumulate((tree.rows for tree in trees), initial=0)
    return torch.cat([start + tree.rows_on_rank(cp_size, cp_rank) for start, tree in zip(starts, trees, strict=False)])


def local_slices(trees: Sequence[Segments], cp_size: int) -> list[slice]:
    """Return where each tree's rows are among those of a rank; the same on every rank."""
    return [slice(*ends) for ends in pairwise(accumulate((tree.rows // cp_size for tree in trees), initial=0))]


def to_tensor(trees: Sequence[Segments]) -> torch.Tensor:
    """Return a small CPU tensor of int64 that a model can pass in place of an attention mask.

    For each tree the number of its branches, then `trunk_rows`, `trunk_tokens` and all `branch_rows`.
    """
    numbers = ((len(tree.branch_rows), tree.trunk_rows, tree.trunk_tokens, *tree.branch_rows) for tree in trees)
    return torch.tensor([number for tree in numbers for number in tree])


def from_tensor(numbers: torch.Tensor) -> tuple[Segments, ...]:
    assert (numbers.dtype, numbers.ndim) == (torch.int64, 1), (
        f"expected the int64 numbers of segments.to_tensor(), not {numbers.dtype} of shape {tuple(numbers.shape)}: "
        "an attention mask?"
    )

    def trees(rest: list[int]) -> Iterator[Segments]:
        while rest:
            (branches, trunk_rows, trunk_tokens), rest = rest[:3], rest[3:]
            yield Segments(trunk_rows, trunk_tokens, tuple(rest[:branches]))
            rest = rest[branches:]

    return tuple(trees(numbers.tolist()))
