"""Common subsequences against the textbook table, and what counts as different."""

from hypothesis import given
from hypothesis import strategies as st

from nemo_longpo.data_tools.inspection.similarity import differences, similarity

IDS = st.lists(st.integers(0, 4), max_size=14)


def longest_common_subsequence(left, right):
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(IDS, IDS)
def test_similarity_is_the_share_of_a_longest_common_subsequence(left, right):
    if left or right:
        assert similarity(left, right) == 2 * longest_common_subsequence(left, right) / (len(left) + len(right))


@given(IDS, IDS)
def test_what_does_not_differ_is_the_same_in_both(left, right):
    differ = differences(left, right)
    assert [len(side) for side in differ] == [len(left), len(right)]
    rest = [
        [token for token, flag in zip(ids, flags, strict=True) if not flag]
        for ids, flags in zip((left, right), differ, strict=True)
    ]
    assert rest[0] == rest[1]
    assert len(rest[0]) <= longest_common_subsequence(left, right)


def test_equal_empty_and_disjoint_answers():
    assert similarity([], []) == similarity([3], [3]) == similarity([1, 2], [1, 2]) == 1
    assert similarity([1, 2], [3]) == similarity([], [3]) == 0
    assert similarity([1, 2, 3, 4], [1, 9, 3, 4]) == 0.75


def test_lone_shared_tokens_inside_count_as_different_but_not_at_the_ends():
    assert differences([1, 5, 6, 9], [1, 7, 8, 9]) == ([False, True, True, False],) * 2
    assert differences([1, 2, 5, 3, 4], [8, 9, 5, 7, 6])[0] == [True] * 5
    assert differences([1, 2, 5, 6, 3], [8, 9, 5, 6, 7])[0] == [True, True, False, False, True]
    assert differences([9, 1, 2, 8], [1, 2, 7, 7]) == ([True, False, False, True], [False, False, True, True])


def test_thousands_of_tokens():
    left = [(i * i) % 1009 for i in range(5000)]
    assert similarity(left, left[:2500] + left[2501:]) == 2 * 4999 / 9999
