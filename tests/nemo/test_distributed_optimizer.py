"""Gradients as the distributed optimizer sees them, read off the weights after a step.

It alone makes Megatron reduce-scatter: a data-parallel rank then holds complete sums of its own share only. What is
summed over pipeline stages after that, the copies of a tied weight, must have the same shares on both stages.
"""

import shutil

import pytest
from safetensors.torch import load_file
from support.jobs import nemo_jobs
from support.parity import BETA, WEIGHT, assert_equal_gradients

from nemo_longpo.conversion.exporter import export_checkpoint

pytestmark = pytest.mark.distributed

# Megatron's distributed optimizer is Adam. Without averages, and with an ε that hides the gradient's size in the
# denominator, it is plain gradient descent: w − (lr / ε) · g.
EPSILON, RATE = 1e8, 10.0


@pytest.mark.parametrize("workbench", ["qwen2"], indirect=True)
@pytest.mark.parametrize("pool", ["workers", "core16_workers"])
@pytest.mark.parametrize("overlap", [False, True], ids=["", "overlapped"])
def test_tied_weights_on_two_stages(workbench, reference, request, pool, overlap, tmp_path):
    settings = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": len(workbench.records),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(tmp_path / "run"),
        "model.objective.beta": BETA,
        "model.objective.preference_weight": WEIGHT,
        "optim.config.adam_beta1": 0.0,
        "optim.config.adam_beta2": 0.0,
        "optim.config.adam_eps": EPSILON,
        "optim.config.lr": RATE * EPSILON,
        "optim.config.clip_grad": 0.0,
        "optim.lr_scheduler": None,
        "trainer.devices": 4,
        "trainer.max_steps": 1,
        "trainer.strategy.pipeline_model_parallel_size": 2,
        "trainer.strategy.ddp.overlap_grad_reduce": overlap,
        "trainer.strategy.ddp.overlap_param_gather": False,
    }
    job, end = nemo_jobs.finetune_with_shares_of_the_optimizer, tmp_path / "end"
    request.getfixturevalue(pool).run(job, 4, overrides=settings, weights=str(end / "weights"))
    shutil.copytree(workbench.checkpoint / "context", end / "context")
    trained = load_file(export_checkpoint(end, tmp_path / "hf") / "model.safetensors")
    start = load_file(workbench.hf / "model.safetensors")
    assert_equal_gradients({name: (start[name] - trained[name]) / RATE for name in trained}, reference[1])
