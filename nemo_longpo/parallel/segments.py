"""The order of the rows of one pair, and which of them a context-parallel rank holds.

A pair is a causal *trunk* and then branches that all continue it: no branch for two full sequences side by side, two
branches for chosen and rejected after a shared prefix. The token layout and attention take the order of rows from here.
"""

from dataclasses import dataclass
from itertools import accumulate

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
    """Rows `[trunk | branch | branch …]` of a whole pair, over all ranks.

    `trunk_rows` includes the trunk's padding, which follows its `trunk_tokens`; padding after the last branch counts as
    rows of that branch. A rank holds the trunk's zigzag rows, then a contiguous share of the branch rows.
    """

    trunk_rows: int
    trunk_tokens: int
    branch_rows: tuple[int, ...] = ()

    def rows_on_rank(self, cp_size: int, cp_rank: int) -> torch.Tensor:
        """Return the numbers of a rank's rows, in its order."""
        trunk = zigzag_rows(self.trunk_rows, cp_size, cp_rank)
        branches = torch.arange(self.trunk_rows, self.trunk_rows + sum(self.branch_rows))
        assert len(branches) % cp_size == 0, f"{len(branches)} branch rows do not split over {cp_size} ranks"
        return torch.cat([trunk, branches.view(cp_size, -1)[cp_rank]])

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

    def to_tensor(self) -> torch.Tensor:
        """Return a small CPU tensor, int64 [2 + branches], which a model can pass in place of an attention mask."""
        return torch.tensor([self.trunk_rows, self.trunk_tokens, *self.branch_rows])

    @classmethod
    def from_tensor(cls, numbers: torch.Tensor) -> "Segments":
        assert (numbers.dtype, numbers.ndim) == (torch.int64, 1), (
            f"expected the int64 numbers of Segments.to_tensor(), not {numbers.dtype} of shape {tuple(numbers.shape)}: "
            "an attention mask?"
        )
        trunk_rows, trunk_tokens, *branch_rows = numbers.tolist()
        return cls(trunk_rows, trunk_tokens, tuple(branch_rows))
