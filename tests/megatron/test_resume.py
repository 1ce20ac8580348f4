"""A run that was killed continues as if nothing had happened: weights, optimizer state, learning rate, data order."""

import json
import math
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


def _consumed(checkpoint: Path) -> int:
    common = torch.load(checkpoint / "weights" / "common.pt", weights_only=False)
    return common["LongPODataModule"]["consumed_samples"]


def _metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "tb_logs" / "longpo" / "metrics.jsonl").read_text().splitlines()]
    timed = "tokens_per_second", "tflops_per_device", "step_seconds"
    return [{name: line[name] for name in line if name not in timed} for line in lines]


def _last(run: Path) -> Path:
    (last,) = (run / "longpo" / "checkpoints").glob("*last")
    return last


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_killed_again_and_again_equals_undisturbed(workbench, workers, tmp_path):
    """With two context ranks, a decaying learning rate, and three of eight records a step, of similar length.

    One end is a SIGKILL, the others leave the same behind; where one process loads the records, another run has
    workers for it.
    """

    def settings(run: str, **more) -> dict:
        return {
            "data.paths": str(workbench.shards),
            "data.global_batch_size": 3,
            "data.length_window": 2,
            "resume.restore_config.path": str(workbench.checkpoint),
            "log.log_dir": str(tmp_path / run),
            "log.ckpt.every_n_train_steps": 2,
            "log.ckpt.save_optim_on_train_end": True,
            "optim.config.lr": 1e-2,
            "trainer.devices": 2,
            "trainer.max_steps": 7,
            "trainer.strategy.context_parallel_size": 2,
            **more,
        }

    workers.run("megatron_jobs", "finetune", 2, overrides=settings("straight"), checkpoints=True)
    killed = settings("killed", **{"data.num_workers": 1})
    with pytest.raises(AssertionError, match="was killed"):
        WorkerPool(2).run("megatron_jobs", "finetune", 2, overrides=killed, checkpoints=True, kill_after=3)
    assert [line["step"] for line in _metrics(tmp_path / "killed")] == [1, 2, 3]
    for step, saved in ((4, 2), (5, 4)):
        workers.run("resume_jobs", "finetune_until", 2, overrides=killed, step=step)
        assert _consumed(_last(tmp_path / "killed")) == saved * 3
    workers.run("megatron_jobs", "finetune", 2, overrides=killed, checkpoints=True)

    straight, resumed = _metrics(tmp_path / "straight"), _metrics(tmp_path / "killed")
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5, 6, 7]
    assert resumed == straight
    assert _consumed(_last(tmp_path / "killed")) == 7 * 3
    expected, found = _tensors(_last(tmp_path / "straight")), _tensors(_last(tmp_path / "killed"))
    assert any("exp_avg_sq" in name for name in expected), "the checkpoint holds no optimizer state"
    assert found.keys() == expected.keys()
    unequal = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not unequal

    workers.run("megatron_jobs", "finetune", 2, overrides=killed, checkpoints=True)
    assert _metrics(tmp_path / "killed") == straight, "a finished run has nothing to do"
    more = {"trainer.max_steps": 9}
    for run in ("straight", "killed"):
        workers.run("megatron_jobs", "finetune", 2, overrides=settings(run, **more), checkpoints=True)
    longer, resumed = _metrics(tmp_path / "straight"), _metrics(tmp_path / "killed")
    assert longer[:7] == straight
    assert resumed == longer
    assert [line["step"] for line in longer[7:]] == [8, 9]
    expected_rates = [1e-2 * (1 + math.cos(math.pi * step / 9)) / 2 for step in (7, 8)]
    assert [line["lr"] for line in longer[7:]] == pytest.approx(expected_rates, rel=1e-6)
    assert _consumed(_last(tmp_path / "killed")) == 9 * 3
