"""Does `longpo plan` predict how much memory a step takes? Real training steps on the CPU against the model's formulas.

    python -m benchmarks.engine.plan_memory

Every case is a process of its own that trains a model of 6 layers and hidden size 512 in fp32 with the tiny recipe, one
process, one pair per step, and measures the peak of its resident memory above what it held before there was a model.
The formulas are those of GPUs with the widths of the CPU's plain layers; what only GPUs have (communication, rings,
distributed optimizers) is not covered. Writes a JSON file, and a table beside it.
"""

import json
import os
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, get_args

from support.training_pairs import write_shards

from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.placement import PairLayout, Placement
from nemo_longpo.planning.job import Job
from nemo_longpo.planning.memory import estimate_memory

from .. import RESULTS
from ..common.processes import measured_steps
from ..common.random_pairs import random_pair, save_model, tokenizer
from ..common.results import origin, parser, write_results

SHAPE = ModelShape(layers=6, hidden=512, ffn=1536, heads=8, kv_heads=2, head_size=64, vocab=8192)
BRANCH = 512
LOGPROB_MEMORY_GB = 0.1
STEPS = 2
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {"recompute_granularity": "full"},
}
# Blocks above 64 KB go back to the system when they are freed; else the peak would be the heap's history.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--trunks", type=int, nargs="+", default=[2048, 8192], help="default: %(default)s")
    flags.add_argument("--output", type=Path, default=RESULTS / "plan_memory.json")
    arguments = flags.parse_args()
    os.environ |= ENVIRONMENT
    found = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = work / "checkpoint"
        import_checkpoint(save_model(work / "model", SHAPE), checkpoint)
        for trunk in arguments.trunks:
            records = [random_pair(SHAPE.vocab, trunk, BRANCH, BRANCH, seed) for seed in range(STEPS)]
            shards = write_shards(work / f"shards-{trunk}", records, tokenizer(SHAPE.vocab), SHAPE.vocab)
            for layout, recompute in product(get_args(PairLayout), RECOMPUTE):
                job = Job(
                    shape=SHAPE,
                    trunk=trunk,
                    chosen=BRANCH,
                    rejected=BRANCH,
                    pairs=1,
                    layout=layout,
                    precision="32",
                    logprob_memory_gb=LOGPROB_MEMORY_GB,
                    on_cpu=True,
                )
                measured = measure(job, recompute, checkpoint, shards)
                case = {"trunk": trunk, "layout": layout, "recompute": recompute}
                found.append(case | compare(job, recompute, measured))
                print(json.dumps(found[-1]), flush=True)
    lines = [
        f"{SHAPE.layers} layers, hidden {SHAPE.hidden}, {SHAPE.parameters / 1e6:.0f} M parameters, fp32; peaks in MB.",
        "",
        "| trunk | layout | recompute | measured | predicted | predicted / measured |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {case['trunk']:,} | {case['layout']} | {case['recompute']} | {case['measured_mb']:,.0f} "
        f"| {case['predicted_mb']:,.0f} | {case['ratio']:.2f} |"
        for case in found
    ]
    result = origin(("torch", "megatron-core", "nemo-toolkit")) | {"cases": found}
    write_results(arguments.output.stem, result, lines, arguments.output.parent)


def measure(job: Job, recompute: str, checkpoint: Path, shards: Path) -> float:
    """The higher peak of the steps, in MB (10⁶ bytes)."""
    overrides = {"model.pair_layout": job.layout, "model.logprob_memory_gb": LOGPROB_MEMORY_GB}
    overrides |= {f"trainer.strategy.{name}": value for name, value in RECOMPUTE[recompute].items()}
    run = {"checkpoint": str(checkpoint), "shards": str(shards), "steps": STEPS, "overrides": overrides}
    return max(step["peak_mb"] for step in measured_steps(sys.executable, "longpo_steps", run))


def compare(job: Job, recompute: str, measured: float) -> dict[str, Any]:
    memory = estimate_memory(job, Placement().recomputing(recompute))  # type: ignore[arg-type]
    predicted = memory.tensors / 1e6
    parts = {name: value / 1e6 for name, value in memory.as_dict().items()}
    return {
        "measured_mb": measured,
        "predicted_mb": predicted,
        "ratio": predicted / measured,
        "predicted_parts_mb": parts,
    }


if __name__ == "__main__":
    main()
