"""Compare two ways to score every token, forward and backward: all logits at once, or a tile at a time.

    python -m benchmarks.engine.logprobs

Random hidden states and labels, and an output weight with as many rows as Mistral's and Qwen2.5's vocabularies; fp32 on
a CPU. Every measurement is a process of its own, in which the two ways take turns; both must find the same sum of
log-probs and the same gradients. Memory is the peak above the process that holds hidden states and weight: it includes
both gradients. CPU seconds stand beside the wall clock because other work on the machine does not count in them. Writes
logprobs.json and logprobs.md.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from nemo_longpo.logprobs import LogitBudget, token_logprobs

from .. import RESULTS
from ..common.meter import Meter
from ..common.results import origin, parser, write_results

VOCABULARIES = (32_768, 152_064)
SEQUENCE, RANKS = 524_288, 8
TOLERANCE = 1e-4


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=4096, help="tokens")
    flags.add_argument("--hidden", type=int, default=512, help="hidden size")
    flags.add_argument("--memory-mb", type=float, default=250.0, help="budget of a chunk's logits, 10^6 bytes")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--output", type=Path, default=RESULTS / "logprobs.json")
    arguments = flags.parse_args()
    measured = [compare(vocab, arguments) for vocab in VOCABULARIES]
    lines = [
        f"{arguments.rows:,} rows, hidden size {arguments.hidden}, fp32, {arguments.threads} threads, tiles of "
        f"{arguments.memory_mb:.0f} MB; medians of {arguments.rounds} processes. MB = 10^6 bytes.",
        "",
        "| vocabulary | rows × columns of a tile | peak MB, all logits | peak MB, chunked | of which gradients "
        "| seconds (CPU), all logits | seconds (CPU), chunked | logits of 65,536 rows, GB |",
        "|---|---|---|---|---|---|---|---|",
        *(row(found) for found in measured),
        "",
        f"The last column is what one fp32 copy of the logits would take on each of {RANKS} ranks that share "
        f"{SEQUENCE:,} tokens; the usual computation holds several.",
    ]
    settings = {"rows": arguments.rows, "hidden": arguments.hidden, "memory_mb": arguments.memory_mb}
    result = origin(("torch",)) | settings | {"threads": arguments.threads, "measured": measured}
    write_results(arguments.output.stem, result, lines, arguments.output.parent)


def compare(vocab: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turn, and what their medians are; stops if they disagree."""
    tile = LogitBudget(arguments.memory_mb / 1e3).tile(vocab, arguments.hidden, torch.float32)
    runs: dict[str, list[dict[str, float]]] = {"all": [], "chunked": []}
    for _ in range(arguments.rounds):
        for way, found in runs.items():
            job = vocab, arguments.rows, arguments.hidden, arguments.threads, tile if way == "chunked" else None
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                found.append(fresh.submit(measure, *job).result())
    for name in ("logprobs", "hidden_gradient", "weight_gradient"):
        ours, theirs = (runs[way][0][name] for way in ("chunked", "all"))
        if abs(ours - theirs) > TOLERANCE * abs(theirs):
            raise SystemExit(f"{name} differ: {ours} chunked, {theirs} with all logits")
    names = "seconds", "cpu_seconds", "peak_mb"
    return {
        "vocab": vocab,
        "tile": tile,
        "gradients_mb": 4e-6 * arguments.hidden * (vocab + arguments.rows),
        "logits_of_a_rank_gb": 4e-9 * vocab * SEQUENCE / RANKS,
        "medians": {way: {name: median(run[name] for run in found) for name in names} for way, found in runs.items()},
        "runs": runs,
    }


def measure(vocab: int, rows: int, hidden_size: int, threads: int, tile: tuple[int, int] | None) -> dict[str, float]:
    """One forward and backward in this process; without a tile, of all logits."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    hidden = torch.randn(rows, hidden_size).requires_grad_()
    weight = (torch.randn(vocab, hidden_size) / hidden_size**0.5).requires_grad_()
    labels = torch.randint(0, vocab, (rows,))

    def step(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        if tile is None:
            logprobs = (hidden @ weight.T).float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        else:
            logprobs = token_logprobs(hidden, weight, labels, chunk_size=tile[0], vocab_chunk_size=tile[1])
        logprobs.mean().backward()
        return logprobs

    _warm_up(step, hidden_size)
    meter = Meter()
    meter.start()
    logprobs = step(hidden, weight, labels)
    found = meter.stop()
    assert hidden.grad is not None
    assert weight.grad is not None
    return found | {
        "logprobs": logprobs.sum().item(),
        "hidden_gradient": hidden.grad.norm().item(),
        "weight_gradient": weight.grad.norm().item(),
    }


def _warm_up(step: Callable[[Tensor, Tensor, Tensor], Tensor], hidden_size: int) -> None:
    """A first call starts threads and loads code."""
    few = torch.randn(8, hidden_size, requires_grad=True)
    step(few, few.detach().requires_grad_(), torch.arange(8))


def row(found: dict[str, Any]) -> str:
    whole, chunked = (found["medians"][way] for way in ("all", "chunked"))
    cells = [
        f"{found['vocab']:,}",
        " × ".join(f"{size:,}" for size in found["tile"]),
        f"{whole['peak_mb']:,.0f}",
        f"{chunked['peak_mb']:,.0f} ({chunked['peak_mb'] / whole['peak_mb']:.0%})",
        f"{found['gradients_mb']:,.0f}",
        *(f"{way['seconds']:.1f} ({way['cpu_seconds']:.1f})" for way in (whole, chunked)),
        f"{found['logits_of_a_rank_gb']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
