import pytest
import torch

from nemo_longpo.conversion.families.fusions import Fusion, join, split

GROUPS = 2


def test_query_key_value_are_interleaved_by_group():
    """Rows are labelled 100·(q, k or v) + head, so the order can be read off."""
    query = torch.tensor([0, 1, 2, 3]).repeat_interleave(3)
    key = 100 + torch.tensor([0, 1]).repeat_interleave(3)
    value = 200 + torch.tensor([0, 1]).repeat_interleave(3)
    joined = join(Fusion.QKV, [query, key, value], GROUPS)
    assert joined[::3].tolist() == [0, 1, 100, 200, 2, 3, 101, 201]


def test_rows_are_stacked_in_order():
    assert join(Fusion.ROWS, [torch.zeros(2), torch.ones(2)], GROUPS).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("trailing", [(), (5,)])
@pytest.mark.parametrize(("fusion", "rows"), [(Fusion.QKV, (12, 6, 6)), (Fusion.ROWS, (7, 7)), (Fusion.SAME, (4,))])
def test_split_undoes_join(fusion: Fusion, rows: tuple[int, ...], trailing: tuple[int, ...]):
    parts = [torch.randn(count, *trailing) for count in rows]
    back = split(fusion, join(fusion, parts, GROUPS), rows, GROUPS)
    assert all(torch.equal(a, b) and b.is_contiguous() for a, b in zip(parts, back, strict=True))
