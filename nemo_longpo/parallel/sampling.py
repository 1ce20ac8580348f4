"""Order the records: batches of similar cost, and an equal load for every data-parallel rank.

Pure functions of the records' costs, a seed and a place in the run. So the order does not depend on restarts, and the
number of data-parallel ranks changes only the places within a global batch.

Shape legend: N records, B records of a global batch.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def epoch_order(costs_N: Array, seed: int, epoch: int, batch_size: int, window: int) -> Array:
    """Return the records of one epoch, each once, int64 [N]; records of one global batch have similar costs.

    A random permutation; then `window` global batches at a time are sorted by cost, cut into batches again, and the
    batches shuffled. A window of 1 leaves the permutation unchanged. Epochs follow each other without a gap, so one may
    begin and end within a global batch: those records keep their places in the permutation.
    """
    rng = np.random.default_rng([seed, epoch])
    order_N = rng.permutation(len(costs_N))
    first = min(-epoch * len(costs_N) % batch_size, len(costs_N))
    whole = (len(costs_N) - first) // batch_size
    for start in range(0, whole, window) if window > 1 else ():
        batches = min(window, whole - start)
        places = slice(first + start * batch_size, first + (start + batches) * batch_size)
        by_cost = order_N[places][np.argsort(costs_N[order_N[places]], kind="stable")]
        order_N[places] = rng.permutation(by_cost.reshape(batches, batch_size)).ravel()
    return order_N


def spread_over_ranks(costs_B: Array, dp_size: int) -> Array:
    """Return an order of a global batch, int64 [B]; every data-parallel rank gets as many records and similar cost.

    Megatron's sampler gives place p to rank `p mod dp_size` as its micro-batch `p div dp_size`
    (nemo/lightning/data.py, MegatronPretrainingSampler). Records are assigned longest first, each to the rank with the
    least cost among those that still have room (Graham's rule, doi 10.1137/0117039).
    """
    assert len(costs_B) % dp_size == 0, f"{len(costs_B)} records do not split over {dp_size} ranks"
    room = len(costs_B) // dp_size
    ranks: list[list[int]] = [[] for _ in range(dp_size)]
    load = np.zeros(dp_size)
    for place in np.argsort(-costs_B, kind="stable"):
        rank = int(np.argmin(load))
        ranks[rank].append(int(place))
        load[rank] += costs_B[place] if len(ranks[rank]) < room else np.inf
    return np.array(ranks).T.ravel()


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordOrder:
    """Item i of a run is record `order[i]`: place `i mod batch_size` of global batch `i div batch_size`.

    The set of records of a batch depends on `seed`, `batch_size` and `window` alone; `dp_size` only arranges it.
    """

    costs_N: Array
    seed: int
    batch_size: int
    window: int = 1
    dp_size: int = 1
    _epochs: dict[int, Array] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, item: int) -> int:
        batch, place = divmod(item, self.batch_size)
        return int(self.batch(batch)[place])

    def batch(self, number: int) -> Array:
        """Return the records of a global batch in the order of its places, int64 [B]."""
        items = range(number * self.batch_size, (number + 1) * self.batch_size)
        records_B = np.array([self._epoch(item // len(self.costs_N))[item % len(self.costs_N)] for item in items])
        arranged: Array = records_B[spread_over_ranks(self.costs_N[records_B], self.dp_size)]
        return arranged

    def _epoch(self, epoch: int) -> Array:
        if epoch not in self._epochs:
            if len(self._epochs) > self.batch_size:  # with few records a batch covers several epochs
                self._epochs.clear()
            self._epochs[epoch] = epoch_order(self.costs_N, self.seed, epoch, self.batch_size, self.window)
        return self._epochs[epoch]
