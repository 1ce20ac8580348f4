"""Twenty steps of a tiny run are committed as a curve that every change must reproduce.

A change that is meant to move the curve writes it anew, and says why in its commit message:

    LONGPO_WRITE_GOLDEN=1 python -m pytest tests/megatron/test_golden.py
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from support.jobs import megatron_jobs

from nemo_longpo.checkpoints.run_directory import read_metrics

pytestmark = pytest.mark.distributed

CURVE = Path(__file__).with_name("golden_curve.json")
NAMES = ("loss", "loss/nll", "loss/longpo", "rewards/margins", "grad_norm")
# Of a curve's largest value. One process, two context, tensor or pipeline ranks, and two full sequences per pair stay
# within 3e-7 of each other over these 20 steps; the rest is room for other processors' rounding.
TOLERANCE = 1e-5


def distance(found: list[float], expected: list[float]) -> float:
    return float(np.abs(np.subtract(found, expected)).max() / np.abs(expected).max())


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_twenty_steps(workbench, workers, tmp_path):
    """Two context-parallel ranks, a shared prefix, batches of four of eight records: the learning rate decays to 0."""
    overrides = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": 4,
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(tmp_path / "run"),
        "model.objective.preference_weight": 0.5,
        "optim.config.lr": 1e-3,
        "trainer.devices": 2,
        "trainer.max_steps": 20,
        "trainer.strategy.context_parallel_size": 2,
    }
    workers.run(megatron_jobs.finetune, 2, overrides=overrides)
    steps = read_metrics(tmp_path / "run")
    found = {name: [step[name] for step in steps] for name in NAMES}
    if os.environ.get("LONGPO_WRITE_GOLDEN"):
        CURVE.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(CURVE.read_text())
    assert len(found["loss"]) == 20
    for name in NAMES:
        assert distance(found[name], expected[name]) <= TOLERANCE, name
    assert expected["loss/nll"][-1] < 0.9 * expected["loss/nll"][0], "the curve must move for a change to show"
