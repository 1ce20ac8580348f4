"""A run that was killed continues as if nothing had happened: weights, optimizer state, learning rate, data order."""

import json
from pathlib import Path

import pytest
import torch
from distributed import WorkerPool
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

pytestmark = pytest.mark.distributed


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a distributed checkpoint, weights and optimizer state."""
    metadata = FileSystemReader(checkpoint / "weights").read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, storage_reader=FileSystemReader(checkpoint / "weights"), no_dist=True)
    return tensors


def _metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "tb_logs" / "longpo" / "metrics.jsonl").read_text().splitlines()]
    timed = "tokens_per_second", "tflops_per_device", "step_seconds"
    return [{name: line[name] for name in line if name not in timed} for line in lines]


def _last(run: Path) -> Path:
    (last,) = (run / "longpo" / "checkpoints").glob("*last")
    return last


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_two_and_two_steps_equal_four(workbench, workers, tmp_path):
    """With two context ranks, a decaying learning rate, and three of eight records a step, of similar length."""

    def train(run: str, workers: WorkerPool, **job) -> None:
        overrides = {
            "data.paths": str(workbench.shards),
            "data.global_batch_size": 3,
            "data.length_window": 2,
            "resume.restore_config.path": str(workbench.checkpoint),
            "log.log_dir": str(tmp_path / run),
            "log.ckpt.every_n_train_steps": 2,
            "log.ckpt.save_optim_on_train_end": True,
            "optim.config.lr": 1e-2,
            "trainer.devices": 2,
            "trainer.max_steps": 4,
            "trainer.strategy.context_parallel_size": 2,
        }
        workers.run("megatron_jobs", "finetune", 2, overrides=overrides, checkpoints=True, **job)

    train("straight", workers)
    with pytest.raises(AssertionError, match="was killed"):
        train("killed", WorkerPool(2), kill_after=3)
    assert [line["step"] for line in _metrics(tmp_path / "killed")] == [1, 2, 3]
    train("killed", workers)

    straight, resumed = _metrics(tmp_path / "straight"), _metrics(tmp_path / "killed")
    assert [line["step"] for line in resumed] == [1, 2, 3, 4]
    assert resumed == straight
    expected, found = _tensors(_last(tmp_path / "straight")), _tensors(_last(tmp_path / "killed"))
    assert any("exp_avg_sq" in name for name in expected), "the checkpoint holds no optimizer state"
    assert found.keys() == expected.keys()
    unequal = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not unequal
