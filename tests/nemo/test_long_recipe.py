"""A 7B recipe as it is shipped, on a small model and four processes instead of eight GPUs."""

import pytest
import torch
from support import training_pairs as pairs
from support.jobs import nemo_jobs
from support.reference import longpo_step
from transformers import AutoModelForCausalLM

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.objective import METRICS

pytestmark = [pytest.mark.distributed, pytest.mark.parametrize("workbench", ["mistral"], indirect=True)]

FP32 = {"trainer.plugins.precision": "32", "trainer.plugins.params_dtype": torch.float32, "optim.config.bf16": False}


def _first_step(workbench, workers, run, **precision) -> dict[str, float]:
    overrides = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": len(workbench.records),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(run),
        "trainer.devices": 4,
        "trainer.max_steps": 1,
        "trainer.strategy.tensor_model_parallel_size": 2,  # the small model has two heads for keys and values
        **precision,
    }
    workers.run(nemo_jobs.finetune, 4, overrides=overrides, recipe_name="mistral_7b_longpo_128k")
    (metrics,) = read_metrics(run)
    return metrics


def test_first_step_equals_hugging_face(workbench, workers, tmp_path):
    """In fp32 to 1e-4, and as shipped, in bf16, to what bf16 resolves."""
    model = AutoModelForCausalLM.from_pretrained(workbench.hf, dtype=torch.float32)
    expected = longpo_step(model, [pairs.plain_record(record) for record in workbench.records], 0.1, 0.01)
    norm = float(torch.stack([weight.grad.norm() for weight in model.parameters()]).norm())

    exact = _first_step(workbench, workers, tmp_path / "fp32", **FP32)
    for name in METRICS:
        assert exact[name] == pytest.approx(expected[name], rel=1e-4), name
    assert exact["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert exact["lr"] == 5e-7

    shipped = _first_step(workbench, workers, tmp_path / "bf16")
    for name in ("loss", "loss/nll", "logps/chosen", "logps/rejected", "grad_norm"):
        assert shipped[name] == pytest.approx(exact[name], rel=1e-2), name
    assert shipped["loss"] != exact["loss"], "both runs had one precision"
