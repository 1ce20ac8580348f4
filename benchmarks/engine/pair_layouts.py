"""What does the shared prefix save? Step time and peak memory of both layouts of a pair.

    python -m benchmarks.engine.pair_layouts --output benchmarks/results/pair_layouts.json

A small Mistral (fp32, random weights) trains through the whole recipe on one process, one pair per optimizer step: a
document of so many tokens, and two answers of 256. Every measurement is a fresh process that first takes a step on a
short pair; layouts follow each other in turn. Memory is the peak during a step above the process with all libraries
loaded and no model. The FLOP ratio is that of `nemo_longpo.costs.flops` for this model, output layer included.
CPU seconds stand beside the wall clock because other work on the machine does not count in them.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from support.training_pairs import write_shards

from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.costs.flops import PairLengths, executed_flops
from nemo_longpo.costs.model_shape import ModelShape

from .. import RESULTS
from ..common.processes import THREADS, measured_steps
from ..common.random_pairs import random_pair, save_model, tokenizer
from ..common.results import origin, parser, write_results

SHAPE = ModelShape(layers=2, hidden=256, ffn=704, heads=4, kv_heads=2, head_size=64, vocab=2048)
LAYOUTS = ("concatenated", "shared_prefix")
TOKENS_PER_PROCESS = 16_384
"""A process repeats a step until it has seen so many trunk tokens."""


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--trunks", type=int, nargs="+", default=[2048, 8192, 16_384, 32_768], help="tokens")
    flags.add_argument("--answer", type=int, default=256, help="tokens of each answer")
    flags.add_argument("--rounds", type=int, default=1)
    flags.add_argument("--recompute", action="store_true", help="full activation recompute")
    flags.add_argument("--output", type=Path, default=RESULTS / "pair_layouts.json")
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="pair_layouts_") as folder:
        measured = measure(Path(folder), arguments)
    lines = [
        f"Mistral of {SHAPE.layers} layers, hidden {SHAPE.hidden}, {SHAPE.heads} heads, {SHAPE.kv_heads} kv heads, "
        f"vocabulary {SHAPE.vocab:,}; fp32, one process, {THREADS} threads, recompute "
        f"{'full' if arguments.recompute else 'off'}; answers of {arguments.answer} tokens. Seconds per step "
        f"(CPU seconds), peak MB during a step; medians.",
        "",
        "| trunk | concatenated | shared prefix | time ratio (CPU) | FLOP ratio | measured / FLOPs (CPU) "
        "| peak, concatenated | peak, shared prefix |",
        "|---|---|---|---|---|---|---|---|",
        *(row(found) for found in measured),
    ]
    settings = {"shape": vars(SHAPE), "threads": THREADS, "recompute": arguments.recompute}
    result = origin(("torch", "megatron-core", "nemo-toolkit")) | settings | {"measured": measured}
    write_results(arguments.output.stem, result, lines, arguments.output.parent)


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Per trunk length: every measured step of both layouts, and the ratios of the medians."""
    checkpoint = import_checkpoint(save_model(folder / "model", SHAPE), folder / "checkpoint")
    steps = {trunk: max(1, TOKENS_PER_PROCESS // trunk) for trunk in arguments.trunks}
    runs: dict[int, dict[str, list[dict[str, Any]]]] = {trunk: {name: [] for name in LAYOUTS} for trunk in steps}
    short = random_pair(SHAPE.vocab, 512, 64, 64)
    for trunk, count in steps.items():
        pairs = [
            short,
            *(random_pair(SHAPE.vocab, trunk, arguments.answer, arguments.answer, 1 + i) for i in range(count)),
        ]
        write_shards(folder / f"shards-{trunk}", pairs, tokenizer(SHAPE.vocab), SHAPE.vocab)
    for _ in range(arguments.rounds):
        for trunk, count in steps.items():
            for layout in LAYOUTS:
                overrides = {"model.pair_layout": layout}
                if arguments.recompute:
                    overrides["trainer.strategy.recompute_granularity"] = "full"
                job = {"checkpoint": str(checkpoint), "shards": str(folder / f"shards-{trunk}"), "steps": 1 + count}
                found = measured_steps(sys.executable, "longpo_steps", job | {"overrides": overrides})
                runs[trunk][layout] += found[1:]
    return [summary(trunk, arguments.answer, found) for trunk, found in runs.items()]


def summary(trunk: int, answer: int, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    flops = [executed_flops(SHAPE, PairLengths(trunk, answer, answer), layout) for layout in LAYOUTS]
    kept = ("seconds", "cpu_seconds", "peak_mb")
    medians = {name: {what: median(step[what] for step in runs[name]) for what in kept} for name in LAYOUTS}
    plain, shared = (medians[name] for name in LAYOUTS)
    return {
        "trunk": trunk,
        "answer": answer,
        "flop_ratio": flops[0] / flops[1],
        "time_ratio": plain["seconds"] / shared["seconds"],
        "cpu_time_ratio": plain["cpu_seconds"] / shared["cpu_seconds"],
        "peak_ratio": plain["peak_mb"] / shared["peak_mb"],
        "medians": medians,
        "steps": {name: [{what: step[what] for what in kept} for step in runs[name]] for name in LAYOUTS},
    }


def row(found: dict[str, Any]) -> str:
    plain, shared = (found["medians"][name] for name in LAYOUTS)
    times = " | ".join(f"{side['seconds']:.2f} ({side['cpu_seconds']:.2f})" for side in (plain, shared))
    shares = [found[name] / found["flop_ratio"] for name in ("time_ratio", "cpu_time_ratio")]
    return (
        f"| {found['trunk']:,} | {times} | {found['time_ratio']:.2f} ({found['cpu_time_ratio']:.2f}) | "
        f"{found['flop_ratio']:.2f} | {shares[0]:.0%} ({shares[1]:.0%}) | {plain['peak_mb']:,.0f} | "
        f"{shared['peak_mb']:,.0f} |"
    )


if __name__ == "__main__":
    main()
