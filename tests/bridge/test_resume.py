"""A killed run through Megatron-Bridge continues exactly, on several ranks: weights, optimizer, metrics, data order."""

from pathlib import Path

import pytest
import torch
from support.checkpoint_tensors import checkpoint_tensors
from support.jobs import bridge_jobs
from support.parity_cases import SEQUENCE_PARALLEL
from support.worker_pool import WorkerPool

from nemo_longpo.checkpoints.run_directory import find_checkpoints, read_metrics

pytestmark = pytest.mark.distributed

TIMES = {"tokens_per_second", "tflops_per_device", "step_seconds"}


def metrics(run: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]


@pytest.mark.parametrize(
    ("workbench", "sizes", "more"),
    [
        pytest.param("mistral", (2, 1, 1), {}, id="mistral: cp 2"),
        pytest.param("qwen2", (1, 2, 2), SEQUENCE_PARALLEL, id="qwen2: tp 2, pp 2, sequence parallel"),
    ],
    indirect=["workbench"],
)
def test_killed_run_equals_undisturbed_run(workbench, bridge_process, workers, tmp_path, sizes, more):
    """With a decaying learning rate, weight decay, and three of eight records a step, of similar length.

    All ranks are killed, after steps with a checkpoint and without one, and the run goes on in another place. Where one
    process loads the records of the undisturbed run, the other has workers for it.
    """
    cp, tp, pp = sizes
    settings = {
        "checkpoint.pretrained_checkpoint": str(workbench.checkpoint),
        "checkpoint.save_interval": 2,
        "dataset.paths": [str(workbench.shards)],
        "dataset.length_window": 2,
        "train.global_batch_size": 3,
        "train.train_iters": 7,
        "optimizer.lr": 1e-2,
        "optimizer.weight_decay": 0.1,
        "scheduler.start_weight_decay": 0.1,
        "scheduler.end_weight_decay": 0.1,
        "model.context_parallel_size": cp,
        "model.tensor_model_parallel_size": tp,
        "model.pipeline_model_parallel_size": pp,
        **{f"model.{name}": value for name, value in more.items()},
    }
    ranks = cp * tp * pp
    workers.run(bridge_jobs.pretrain, ranks, overrides=settings, log_dir=str(tmp_path / "straight"))
    killed = settings | {"dataset.num_workers": 1}
    for step in (3, 6):
        with pytest.raises(AssertionError, match="was killed"):
            WorkerPool(bridge_process, ranks).run(
                bridge_jobs.pretrain, ranks, overrides=killed, log_dir=str(tmp_path / "killed"), kill_after=step
            )
        assert [line["step"] for line in metrics(tmp_path / "killed")] == list(range(1, step + 1))
    (tmp_path / "killed").rename(tmp_path / "moved")
    workers.run(bridge_jobs.pretrain, ranks, overrides=killed, log_dir=str(tmp_path / "moved"))

    straight, resumed = metrics(tmp_path / "straight"), metrics(tmp_path / "moved")
    assert [line["step"] for line in straight] == [1, 2, 3, 4, 5, 6, 7]
    assert resumed == straight
    expected, found = (checkpoint_tensors(*find_checkpoints(tmp_path / run)) for run in ("straight", "moved"))
    assert any("exp_avg_sq" in name for name in expected), "the checkpoint holds no optimizer state"
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
