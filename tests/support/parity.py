"""One step on the whole stack, and how its gradients are compared with another's."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.jobs import megatron_jobs
from torch import Tensor

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.conversion.exporter import export_checkpoint

TOLERANCE = 1e-4
BETA, WEIGHT = 0.1, 0.5


def train_one_step(
    workbench, workers, directory: Path, case, finetune=megatron_jobs.finetune
) -> tuple[dict, dict[str, Tensor], list[list[int]]]:
    """The step's metrics, its gradients under Hugging Face's names, and the rows of every rank's micro-batches."""
    cp, tp, pp, dp, more = case
    overrides = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": len(workbench.records),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(directory / "run"),
        "model.objective.beta": BETA,
        "model.objective.preference_weight": WEIGHT,
        "trainer.devices": cp * tp * pp * dp,
        "trainer.max_steps": 1,
        "trainer.strategy.context_parallel_size": cp,
        "trainer.strategy.tensor_model_parallel_size": tp,
        "trainer.strategy.pipeline_model_parallel_size": pp,
        **more,
    }
    gradients = directory / "gradients"
    rows = workers.run(
        finetune,
        cp * tp * pp * dp,
        overrides=overrides,
        gradients=str(gradients / "weights"),
    )
    (metrics,) = read_metrics(directory / "run")
    # Gradients were saved under their parameters' keys, so the exporter gives them Hugging Face's names and shapes.
    shutil.copytree(workbench.checkpoint / "context", gradients / "context")
    return metrics, load_file(export_checkpoint(gradients, directory / "hf") / "model.safetensors"), rows


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> Tensor:
    """Each parameter's by the norm of the difference; returns the norm over all of them."""
    assert set(found) == set(expected)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error <= TOLERANCE * max(float(gradient.norm()), 1e-3 * float(norm)), (
            f"{name}: {error} of {gradient.norm()}"
        )
    return norm
