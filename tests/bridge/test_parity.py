"""One global batch through Megatron-Bridge's own `pretrain` equals plain Hugging Face: loss, metrics, gradients."""

from pathlib import Path

import pytest
from support import parity_cases
from support.jobs import bridge_jobs
from support.parity import BETA, WEIGHT, assert_step_equals_reference, under_their_names
from torch import Tensor

from nemo_longpo.checkpoints.run_directory import read_metrics

pytestmark = pytest.mark.distributed


def train_one_step(workbench, workers, directory: Path, case) -> tuple[dict, dict[str, Tensor], list[list[int]]]:
    """As `support.parity.train_one_step`, through Bridge and from the Hugging Face directory."""
    cp, tp, pp, dp, more = case
    overrides = {
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
    gradients = directory / "gradients"
    rows = workers.run(
        bridge_jobs.pretrain,
        cp * tp * pp * dp,
        overrides=overrides,
        log_dir=str(directory / "run"),
        gradients=str(gradients),
    )
    (metrics,) = read_metrics(directory / "run")
    return metrics, under_their_names(workbench.checkpoint, gradients), rows


@pytest.mark.parametrize(("workbench", "case"), parity_cases.parameters(), indirect=["workbench"])
def test_step_equals_hugging_face(workbench, reference, workers, tmp_path, case):
    assert_step_equals_reference(workbench, reference, workers, tmp_path, case, train_one_step)
