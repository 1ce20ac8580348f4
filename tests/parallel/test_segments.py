"""Which rows a rank holds, against literal lists and by counting."""

import pytest
import torch
from hypothesis import given, strategies as st

from nemo_longpo.parallel.segments import Segments, from_tensor, local_slices, rows_on_rank, to_tensor, zigzag_rows


@pytest.mark.parametrize(
    ("length", "cp_size", "expected"),
    [
        (5, 1, [[0, 1, 2, 3, 4]]),
        (8, 2, [[0, 1, 6, 7], [2, 3, 4, 5]]),
        (8, 4, [[0, 7], [1, 6], [2, 5], [3, 4]]),
        (16, 4, [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]]),
        (6, 3, [[0, 5], [1, 4], [2, 3]]),
    ],
)
def test_zigzag_rows(length, cp_size, expected):
    assert [zigzag_rows(length, cp_size, rank).tolist() for rank in range(cp_size)] == expected
    assert sorted(row for rows in expected for row in rows) == list(range(length)), "every row has one owner"


def test_zigzag_refuses_indivisible_length():
    with pytest.raises(AssertionError, match="10 rows do not split into 2 x 2 chunks"):
        zigzag_rows(10, cp_size=2, cp_rank=0)


@pytest.mark.parametrize(
    ("cp_size", "expected"),
    [
        (1, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]),
        (2, [[0, 1, 6, 7, 8, 9, 10, 11], [2, 3, 4, 5, 12, 13, 14, 15]]),
        (4, [[0, 7, 8, 9], [1, 6, 10, 11], [2, 5, 12, 13], [3, 4, 14, 15]]),
    ],
)
def test_rank_holds_zigzag_trunk_then_branch_share(cp_size, expected):
    segments = Segments(trunk_rows=8, trunk_tokens=6, branch_rows=(5, 3))
    assert [segments.rows_on_rank(cp_size, rank).tolist() for rank in range(cp_size)] == expected


@pytest.mark.parametrize(("cp_size", "expected"), [(1, [6]), (2, [2, 4]), (4, [1, 1, 2, 2])])
def test_tokens_of_the_trunk_on_each_rank(cp_size, expected):
    segments = Segments(trunk_rows=8, trunk_tokens=6, branch_rows=(8,))
    assert [segments.trunk_tokens_on_rank(cp_size, rank) for rank in range(cp_size)] == expected


@given(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 12), st.data())
def test_trunk_tokens_come_first_on_every_rank(cp_size, chunk, data):
    rows = 2 * cp_size * chunk
    segments = Segments(rows, trunk_tokens=data.draw(st.integers(0, rows)))
    for rank in range(cp_size):
        is_token = zigzag_rows(rows, cp_size, rank) < segments.trunk_tokens
        count = segments.trunk_tokens_on_rank(cp_size, rank)
        assert is_token.tolist() == [True] * count + [False] * (len(is_token) - count)


def test_indivisible_branch_rows_are_refused():
    with pytest.raises(AssertionError, match="7 branch rows do not split over 2 ranks"):
        Segments(8, 8, (4, 3)).rows_on_rank(2, 0)


def test_branch_slices_count_from_the_first_branch_row():
    assert Segments(8, 6, (5, 3, 4)).branch_slices() == [slice(0, 5), slice(5, 8), slice(8, 12)]
    assert Segments(8, 6).branch_slices() == []


TREES = Segments(8, 6, (5, 3)), Segments(4, 3, (2, 2)), Segments(4, 4)


@pytest.mark.parametrize(
    ("cp_size", "expected"),
    [
        (1, [list(range(28))]),
        (
            2,
            [
                [0, 1, 6, 7, 8, 9, 10, 11, 16, 19, 20, 21, 24, 27],
                [2, 3, 4, 5, 12, 13, 14, 15, 17, 18, 22, 23, 25, 26],
            ],
        ),
    ],
)
def test_rank_holds_its_rows_of_each_tree(cp_size, expected):
    assert [rows_on_rank(TREES, cp_size, rank).tolist() for rank in range(cp_size)] == expected
    assert [rows.stop for rows in local_slices(TREES, cp_size)] == [16 // cp_size, 24 // cp_size, 28 // cp_size]
    assert [rows.start for rows in local_slices(TREES, cp_size)] == [0, 16 // cp_size, 24 // cp_size]


@pytest.mark.parametrize(
    "trees", [TREES, TREES[:1], TREES[2:], (Segments(2**20, 2**20),), (Segments(4, 0, (1, 1, 2)), TREES[2])]
)
def test_trees_round_trip_as_tensor(trees):
    numbers = to_tensor(trees)
    assert (numbers.dtype, numbers.device.type) == (torch.int64, "cpu")
    assert numbers.shape == (sum(3 + len(tree.branch_rows) for tree in trees),)
    assert from_tensor(numbers) == trees


@pytest.mark.parametrize("mask", [torch.ones(4, 4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)])
def test_a_real_mask_is_refused(mask):
    with pytest.raises(AssertionError, match="an attention mask"):
        from_tensor(mask)
