"""Twenty steps of a tiny run, and the committed curve that they must follow."""

import json
import os
from pathlib import Path

import numpy as np
from support.jobs import nemo_jobs

from nemo_longpo.checkpoints.run_directory import read_metrics

CURVE = Path(__file__).parents[1] / "nemo" / "golden_curve.json"
NAMES = ("loss", "loss/nll", "loss/longpo", "rewards/margins", "grad_norm")
# Of a curve's largest value. One process, two context, tensor or pipeline ranks, and two full sequences per pair stay
# within 3e-7 of each other over these 20 steps; the rest is room for other processors' rounding.
TOLERANCE = 1e-5


def distance(found: list[float], expected: list[float]) -> float:
    return float(np.abs(np.subtract(found, expected)).max() / np.abs(expected).max())


def assert_golden_curve(workbench, workers, directory: Path) -> None:
    """Two context-parallel ranks, a shared prefix, batches of four of eight records: the learning rate decays to 0."""
    overrides = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": 4,
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(directory / "run"),
        "model.objective.preference_weight": 0.5,
        "optim.config.lr": 1e-3,
        "trainer.devices": 2,
        "trainer.max_steps": 20,
        "trainer.strategy.context_parallel_size": 2,
    }
    workers.run(nemo_jobs.finetune, 2, overrides=overrides)
    steps = read_metrics(directory / "run")
    found = {name: [step[name] for step in steps] for name in NAMES}
    if os.environ.get("LONGPO_WRITE_GOLDEN"):
        CURVE.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(CURVE.read_text())
    assert len(found["loss"]) == 20
    for name in NAMES:
        assert distance(found[name], expected[name]) <= TOLERANCE, name
    assert expected["loss/nll"][-1] < 0.9 * expected["loss/nll"][0], "the curve must move for a change to show"
