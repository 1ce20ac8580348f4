"""One step on the whole stack, and how it is compared with another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoint_tensors import checkpoint_tensors
from support.jobs import nemo_jobs
from support.parity_cases import CONCATENATED, SEQUENCE_PARALLEL
from torch import Tensor

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.conversion.model_on_disk import open_model
from nemo_longpo.objective import METRICS

TOLERANCE = 1e-4
BETA, WEIGHT = 0.1, 0.5


def train_one_step(
    workbench, workers, directory: Path, case, finetune=nemo_jobs.finetune
) -> tuple[dict, dict[str, Tensor], list[list[int]]]:
    """The step's metrics, its gradients under Hugging Face's names, and the rows of every rank's micro-batches.

    Through NeMo. The settings of a case have the names of `parity_cases`, or NeMo's.
    """
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
        **{_name_in_nemo(name): value for name, value in more.items()},
    }
    gradients = directory / "gradients"
    rows = workers.run(finetune, cp * tp * pp * dp, overrides=overrides, gradients=str(gradients))
    (metrics,) = read_metrics(directory / "run")
    return metrics, under_their_names(workbench.checkpoint, gradients), rows


def under_their_names(model: Path, gradients: Path) -> dict[str, Tensor]:
    """Gradients that were saved under their parameters' keys in Megatron, under their names in Hugging Face."""
    opened, saved = open_model(model), checkpoint_tensors(gradients)
    found: dict[str, Tensor] = {}
    for piece in opened.family.pieces(opened.model_shape):
        # Tensor parallelism may pad the vocabulary.
        box = tuple(slice(start, start + size) for start, size in zip(piece.offsets, piece.sizes, strict=True))
        tensor = saved[f"module.{piece.entry.key}"][box].reshape(piece.shape)
        found |= dict(zip(piece.names, piece.split(tensor), strict=True))
    assert len(saved) == len(opened.family.first_pieces(opened.model_shape)), sorted(saved)
    return found


def _name_in_nemo(name: str) -> str:
    if "." in name:
        return name
    of_strategy = name == "sequence_parallel" or name.startswith("recompute_")
    return f"{'trainer.strategy' if of_strategy else 'model'}.{name}"


def assert_step_equals_reference(
    workbench, reference, workers, directory: Path, case, train: Any = train_one_step
) -> None:
    """`reference` has the metrics and gradients of Hugging Face; `train` is called as `train_one_step`."""
    expected_metrics, expected_gradients = reference
    step, gradients, rows = train(workbench, workers, directory, case)
    assert step["step"] == 1
    for name in METRICS:
        assert step[name] == pytest.approx(expected_metrics[name], rel=TOLERANCE), name
    norm = assert_equal_gradients(gradients, expected_gradients)
    assert step["grad_norm"] == pytest.approx(float(norm), rel=TOLERANCE)
    assert_own_lengths(rows, workbench.records, case)


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


def assert_own_lengths(rows_of_ranks: list[list[int]], records, case) -> None:
    """Every micro-batch, in every pipeline stage, has its own pair's rows and padding to 2 · cp and tp at most."""
    cp, tp, pp, _, more = case
    found = sorted(rows for rank in rows_of_ranks for rows in rank)
    split = cp * (tp if SEQUENCE_PARALLEL.items() <= more.items() else 1)
    needed = []
    for record in records:
        trunk, chosen, rejected = record.lengths
        rows = trunk + max(chosen, rejected) - 1 if CONCATENATED.items() <= more.items() else sum(record.lengths) - 1
        needed += [rows / split] * (cp * tp * pp)
    padding = (2 * cp * tp + cp * tp) / split
    assert len(found) == len(needed)
    assert len(set(found)) > 3, "pairs of one length would not show that none is padded to the longest"
    assert all(0 <= got - need < padding for got, need in zip(found, sorted(needed), strict=True)), (found, needed)
