"""How long does the mean data-parallel rank wait for the busiest one?

    python -m benchmarks.engine.balance

Simulated, so the numbers are the same on every machine: an epoch of documents whose lengths are drawn evenly on a
logarithmic scale, both branches of 4,500 tokens, the cost of a pair its FLOPs on Mistral-7B with a shared prefix. Of
every optimizer step, the cost of the busiest rank over that of the mean rank, averaged over the epoch: the factor by
which a step takes longer than with equal work. Writes balance.json and balance.md into benchmarks/results.
"""

import platform

import numpy as np

from nemo_longpo.costs.flops import PairLengths, forward_flops
from nemo_longpo.costs.model_shape import MODELS
from nemo_longpo.parallel.sampling import RecordOrder, epoch_order

from ..common.results import command, parser, write_results

DOCUMENTS, BRANCH = 2048, 4500
LENGTHS = {"64K–128K": (2**16, 2**17), "64K–512K": (2**16, 2**19)}
BATCH_SIZES, DP_SIZES, WINDOWS = (8, 16), (2, 4, 8), (1, 4, 8)


def main() -> None:
    parser(__doc__).parse_args()
    rows = []
    for name, (shortest, longest) in LENGTHS.items():
        rng = np.random.default_rng(0)
        trunks = np.exp(rng.uniform(np.log(shortest), np.log(longest), DOCUMENTS))
        pairs = [PairLengths(round(trunk), BRANCH, BRANCH) for trunk in trunks]
        costs = np.array([forward_flops(MODELS["mistral-7b"], pair) for pair in pairs])
        for batch_size in BATCH_SIZES:
            for dp_size in DP_SIZES:
                found = [imbalance(costs, batch_size, dp_size, window) for window in (0, *WINDOWS)]
                rows.append({"lengths": name, "batch": batch_size, "dp": dp_size, "imbalance": found})
    lines = [
        f"Busiest over mean rank, mean over the steps of an epoch of {DOCUMENTS:,} documents.",
        "",
        "| document tokens | global batch | dp | dealt in random order | "
        + " | ".join(f"length_window={window}" for window in WINDOWS)
        + " |",
        "|---" * (4 + len(WINDOWS)) + "|",
    ]
    for row in rows:
        values = " | ".join(f"{value:.3f}" for value in row["imbalance"])
        lines.append(f"| {row['lengths']} | {row['batch']} | {row['dp']} | {values} |")
    write_results(
        "balance",
        {
            "command": command(),
            "python": platform.python_version(),
            "versions": {"numpy": np.__version__},
            "machine": "any machine (simulated)",
            "columns": ["random", *WINDOWS],
            "rows": rows,
        },
        lines,
    )


def imbalance(costs: np.ndarray, batch_size: int, dp_size: int, window: int) -> float:
    """Of one epoch; a window of 0 deals the random permutation out as it comes."""
    if window:
        order = RecordOrder(costs_N=costs, seed=0, batch_size=batch_size, window=window, dp_size=dp_size)
        batches = np.array([order.batch(number) for number in range(len(costs) // batch_size)])
    else:
        batches = epoch_order(costs, 0, 0, batch_size, 1).reshape(-1, batch_size)
    loads = costs[batches].reshape(len(batches), -1, dp_size).sum(1)
    return float((loads.max(1) / loads.mean(1)).mean())


if __name__ == "__main__":
    main()
