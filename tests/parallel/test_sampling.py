"""The order of records: every epoch whole, the same after every restart, and equal loads on data-parallel ranks."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from nemo_longpo.parallel.sampling import RecordOrder, epoch_order, spread_over_ranks


def random_costs(records: int, seed: int = 0) -> np.ndarray:
    """Of documents of 64K to 128K tokens: a Mistral-7B's linear layers, and attention that costs as much at 54K."""
    tokens = np.random.default_rng(seed).uniform(65_536, 131_072, records)
    return tokens + tokens**2 / 54_000


counts = st.integers(1, 40)
batch_sizes = st.sampled_from([1, 2, 4, 8])
windows = st.integers(1, 5)


@settings(max_examples=100, deadline=None)
@given(counts, batch_sizes, windows, st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_holds_each_record_once(records, batch_size, window, seed, dp_exponent):
    """Also where epochs begin and end within a global batch, and where a batch is larger than an epoch."""
    dp_size = min(2**dp_exponent, batch_size)
    order = RecordOrder(costs_N=random_costs(records), seed=seed, batch_size=batch_size, window=window, dp_size=dp_size)
    # Over this many epochs a whole number of batches fits.
    found = np.concatenate([order.batch(number) for number in range(records)])
    assert np.bincount(found).tolist() == [batch_size] * records
    for epoch in range(batch_size):
        own = epoch_order(order.costs_N, seed, epoch, batch_size, window)
        assert sorted(own) == list(range(records))
        first, last = -(-epoch * records // batch_size), (epoch + 1) * records // batch_size
        within = [record for number in range(first, last) for record in order.batch(number).tolist()]
        assert len(within) == len(set(within)), "a record comes twice in the whole batches of one epoch"


@pytest.mark.slow
@given(counts, batch_sizes, windows, st.integers(0, 5), st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_item_depends_only_on_its_number(records, batch_size, window, seed, items):
    """A run resumed at any item, or read by another worker, sees the items of an uninterrupted one."""
    costs = random_costs(records)
    straight = RecordOrder(costs_N=costs, seed=seed, batch_size=batch_size, window=window)
    run = [straight[item] for item in range(301)]
    resumed = RecordOrder(costs_N=costs, seed=seed, batch_size=batch_size, window=window)
    assert [resumed[item] for item in items] == [run[item] for item in items]


@given(counts, st.sampled_from([4, 8]), windows, st.integers(0, 5), st.integers(0, 20))
def test_batches_do_not_depend_on_the_number_of_ranks(records, batch_size, window, seed, number):
    costs = random_costs(records)
    batches = [
        RecordOrder(costs_N=costs, seed=seed, batch_size=batch_size, window=window, dp_size=dp_size).batch(number)
        for dp_size in (1, 2, 4)
    ]
    assert sorted(batches[0]) == sorted(batches[1]) == sorted(batches[2])


def test_epochs_and_seeds_differ_in_order():
    costs = random_costs(30)
    orders = [tuple(epoch_order(costs, seed, epoch, 4, 2)) for seed in range(2) for epoch in range(3)]
    assert len(set(orders)) == 6
    run = RecordOrder(costs_N=costs, seed=1, batch_size=1, window=1)
    assert [run[item] for item in range(60)] == [*epoch_order(costs, 1, 0, 1, 1), *epoch_order(costs, 1, 1, 1, 1)]


def test_without_a_window_the_order_is_random():
    """Costs have no influence at all."""
    assert (epoch_order(random_costs(50), 3, 1, 8, 1) == epoch_order(np.ones(50), 3, 1, 8, 1)).all()


def test_window_groups_similar_costs():
    """Of 13 records and batches of 4: epoch 1 first completes the last batch of epoch 0 with 3, then has two whole."""
    costs = random_costs(13)
    order = epoch_order(costs, seed=0, epoch=1, batch_size=4, window=2)
    permutation = epoch_order(costs, seed=0, epoch=1, batch_size=4, window=1)
    assert (order[:3] == permutation[:3]).all()
    assert (order[11:] == permutation[11:]).all()
    by_cost = permutation[3:11][np.argsort(costs[permutation[3:11]])]
    assert {frozenset(order[3:7]), frozenset(order[7:11])} == {frozenset(by_cost[:4]), frozenset(by_cost[4:])}


def test_batches_of_a_window_come_in_random_order():
    """Else every window would begin with its shortest documents."""
    costs = random_costs(64)
    cheap_first = [costs[epoch_order(costs, seed, 0, 8, 8)].reshape(8, 8).sum(1).argmin() for seed in range(20)]
    assert len(set(cheap_first)) > 3


@pytest.mark.parametrize(
    ("costs", "dp_size", "ranks"),
    [
        ([5, 1, 4, 2], 2, [[5, 1], [4, 2]]),
        ([1, 2, 3, 4, 5, 6, 7, 100], 2, [[100, 3, 2, 1], [7, 6, 5, 4]]),
        ([3, 1, 2], 3, [[3], [2], [1]]),
        ([1, 3, 2], 1, [[3, 2, 1]]),
        ([2, 2, 2, 2], 2, [[2, 2], [2, 2]]),
    ],
)
def test_ranks_get_similar_cost(costs, dp_size, ranks):
    arranged = np.array(costs)[spread_over_ranks(np.array(costs), dp_size)]
    # As the sampler deals them: place p to rank p mod dp, micro-batch p div dp.
    assert [arranged[rank::dp_size].tolist() for rank in range(dp_size)] == ranks


def test_indivisible_batch():
    with pytest.raises(AssertionError, match="6 records do not split over 4 ranks"):
        spread_over_ranks(np.ones(6), 4)


def imbalance(costs: np.ndarray, dp_size: int, window: int) -> float:
    """Cost of the busiest rank over the mean rank, averaged over an epoch of global batches of 8."""
    order = RecordOrder(costs_N=costs, seed=0, batch_size=8, window=window, dp_size=dp_size)
    loads = np.array([costs[order.batch(number)].reshape(-1, dp_size).sum(0) for number in range(len(costs) // 8)])
    return float((loads.max(1) / loads.mean(1)).mean())


@pytest.mark.parametrize(
    ("dp_size", "window", "shrinks_by"),
    [(2, 1, 5), (4, 1, 2.5), (8, 1, 1), (2, 8, 30), (4, 8, 15), (8, 8, 6)],
)
def test_waiting_for_the_busiest_rank_shrinks(dp_size, window, shrinks_by):
    """The mean rank's waiting time as a share of its work, compared with random batches."""
    costs = random_costs(512)
    dealt = costs[epoch_order(costs, 0, 0, 8, 1)].reshape(-1, 8 // dp_size, dp_size).sum(1)
    at_random = float((dealt.max(1) / dealt.mean(1)).mean())
    assert at_random > 1.05
    assert imbalance(costs, dp_size, window) - 1 <= (at_random - 1) / shrinks_by
