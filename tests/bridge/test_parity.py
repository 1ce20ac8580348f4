"""One global batch through Megatron-Bridge's own `pretrain` equals plain Hugging Face: loss, metrics, gradients."""

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support import parity_cases
from support.jobs import bridge_jobs
from support.parity import BETA, WEIGHT, assert_equal_gradients, assert_step_equals_reference, under_their_names
from torch import Tensor

from nemo_longpo.checkpoints.run_directory import read_metrics

pytestmark = pytest.mark.distributed


def settings_of(workbench, case) -> dict[str, Any]:
    """One step over all pairs, as Bridge calls its settings."""
    cp, tp, pp, _, more = case
    return {
        "checkpoint.pretrained_checkpoint": str(workbench.checkpoint),
        "checkpoint.save_interval": None,
        "dataset.paths": [str(workbench.shards)],
        "train.global_batch_size": len(workbench.records),
        "train.train_iters": 1,
        "model.objective.beta": BETA,
        "model.objective.preference_weight": WEIGHT,
        "model.context_parallel_size": cp,
        "model.tensor_model_parallel_size": tp,
        "model.pipeline_model_parallel_size": pp,
        **{f"model.{name}": value for name, value in more.items()},
    }


def train_one_step(workbench, workers, directory: Path, case) -> tuple[dict, dict[str, Tensor], list[list[int]]]:
    """As `support.parity.train_one_step`, through Bridge and from the Hugging Face directory."""
    gradients = directory / "gradients"
    rows = workers.run(
        bridge_jobs.pretrain,
        math.prod(case[:4]),
        overrides=settings_of(workbench, case),
        log_dir=str(directory / "run"),
        gradients=str(gradients),
    )
    (metrics,) = read_metrics(directory / "run")
    return metrics, under_their_names(workbench.checkpoint, gradients), rows


@pytest.mark.parametrize(("workbench", "case"), parity_cases.parameters(), indirect=["workbench"])
def test_step_equals_hugging_face(workbench, reference, workers, tmp_path, case):
    assert_step_equals_reference(workbench, reference, workers, tmp_path, case, train_one_step)


SHARED_OUT = {"mistral": ["dp 2", "cp 2, dp 2"], "qwen2": ["pp 2, dp 2"]}


@pytest.mark.parametrize(("workbench", "case"), parity_cases.parameters(SHARED_OUT), indirect=["workbench"])
def test_gradients_of_the_distributed_optimizer(workbench, reference, workers, tmp_path, case):
    """Each data-parallel rank has complete sums of its share alone, so they are read off the weights after the step.

    Megatron's distributed optimizer is Adam. Without averages, and with an ε that hides the gradient's size in the
    denominator, it is plain gradient descent.
    """
    rate, epsilon = 10.0, 1e8
    adam = {"beta1": 0.0, "beta2": 0.0, "eps": epsilon}
    settings = {**{f"optimizer.adam_{name}": value for name, value in adam.items()}, "optimizer.clip_grad": 0.0}
    settings |= {"optimizer.lr": rate * epsilon, "optimizer.min_lr": rate * epsilon}
    workers.run(
        bridge_jobs.pretrain,
        math.prod(case[:4]),
        overrides=settings_of(workbench, case) | settings,
        log_dir=str(tmp_path / "run"),
        weights=str(tmp_path / "weights"),
        shares_of_the_optimizer=True,
    )
    trained = under_their_names(workbench.checkpoint, tmp_path / "weights")
    start = load_file(workbench.hf / "model.safetensors")
    assert_equal_gradients({name: (start[name] - trained[name]) / rate for name in trained}, reference[1])
