"""A killed run continues exactly: weights, optimizer state, learning rate, data order."""

import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support import tiny_models
from support.checkpoint_tensors import checkpoint_tensors
from support.exploits import edit_recorded
from support.held_lock import hold
from support.jobs import nemo_jobs, resume_jobs
from support.worker_pool import WorkerPool

from nemo_longpo.checkpoints.run_directory import find_checkpoint, metrics_file, read_metrics
from nemo_longpo.live_status import read_status

pytestmark = pytest.mark.distributed


def _consumed(checkpoint: Path) -> int:
    common = torch.load(checkpoint / "weights" / "common.pt", weights_only=False)
    return common["LongPODataModule"]["consumed_samples"]


def _metrics(run: Path) -> list[dict]:
    timed = "tokens_per_second", "tflops_per_device", "step_seconds"
    return [{name: line[name] for name in line if name not in timed} for line in read_metrics(run)]


def _left_over(run: Path) -> set[str]:
    """Return the content of the folder of checkpoints; links with their targets."""
    folder = run / "longpo" / "checkpoints"
    return {f"{path.name} -> {path.readlink()}" if path.is_symlink() else path.name for path in folder.iterdir()}


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_killed_run_equals_undisturbed_run(workbench, nemo_process, workers, tmp_path):
    """With two context ranks, a decaying learning rate, and three of eight records a step, of similar length.

    One end is a SIGKILL, one falls into the removal of a checkpoint, and once the run goes on in another place. Where
    one process loads the records of the undisturbed run, the other has workers for it.
    """

    def settings(run: str, **more) -> dict:
        return {
            "data.paths": str(workbench.shards),
            "data.global_batch_size": 3,
            "data.length_window": 2,
            "resume.restore_config.path": str(workbench.checkpoint),
            "log.log_dir": str(tmp_path / run),
            "log.ckpt.every_n_train_steps": 2,
            "optim.config.lr": 1e-2,
            "trainer.devices": 2,
            "trainer.max_steps": 7,
            "trainer.strategy.context_parallel_size": 2,
            **more,
        }

    saved, _ = workers.run(resume_jobs.count_saves, 2, overrides=settings("straight"))
    assert saved == [2, 4, 6, 7]
    killed = settings("killed", **{"data.num_workers": 1})
    with pytest.raises(AssertionError, match="was killed"):
        WorkerPool(nemo_process, 2).run(nemo_jobs.finetune, 2, overrides=killed, checkpoints=True, kill_after=3)
    assert [line["step"] for line in _metrics(tmp_path / "killed")] == [1, 2, 3]
    workers.run(resume_jobs.finetune_until_removal, 2, overrides=killed)
    assert _left_over(tmp_path / "killed") == {
        "global_step=2",
        "global_step=2-last -> global_step=2",
        "global_step=2-unfinished",
        "global_step=4",
    }
    assert _consumed(find_checkpoint(tmp_path / "killed")) == 4 * 3
    workers.run(resume_jobs.finetune_until, 2, overrides=killed, step=5)
    (tmp_path / "killed").rename(tmp_path / "moved")
    moved = settings("moved", **{"data.num_workers": 1})
    workers.run(nemo_jobs.finetune, 2, overrides=moved, checkpoints=True)

    straight, resumed = _metrics(tmp_path / "straight"), _metrics(tmp_path / "moved")
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5, 6, 7]
    assert resumed == straight
    checkpoints = [find_checkpoint(tmp_path / run) for run in ("straight", "moved")]
    assert [_consumed(checkpoint) for checkpoint in checkpoints] == [7 * 3, 7 * 3]
    expected, found = (checkpoint_tensors(checkpoint / "weights") for checkpoint in checkpoints)
    assert any("exp_avg_sq" in name for name in expected), "the checkpoint holds no optimizer state"
    assert found.keys() == expected.keys()
    unequal = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not unequal
    for run in ("straight", "moved"):
        assert _left_over(tmp_path / run) == {"global_step=7", "global_step=7-last -> global_step=7"}

    more = {"trainer.max_steps": 9}
    for run in ("straight", "moved"):
        workers.run(nemo_jobs.finetune, 2, overrides=settings(run, **more), checkpoints=True)
    longer, resumed = _metrics(tmp_path / "straight"), _metrics(tmp_path / "moved")
    assert longer[:7] == straight
    assert resumed == longer
    assert [line["step"] for line in longer[7:]] == [8, 9]
    expected_rates = [1e-2 * (1 + math.cos(math.pi * step / 9)) / 2 for step in (7, 8)]
    assert [line["lr"] for line in longer[7:]] == pytest.approx(expected_rates, rel=1e-6)
    assert _consumed(find_checkpoint(tmp_path / "moved")) == 9 * 3


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_the_last_step_is_saved_once(workbench, workers, tmp_path):
    """Of a run of one step, of one that is given another, and of none that has nothing left to do.

    A run that is ended before by SIGTERM says so to whoever waits for it."""
    settings = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": 2,
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(tmp_path),
        "log.ckpt.every_n_train_steps": 2,
        "trainer.max_steps": 1,
    }
    stopped = settings | {"trainer.max_steps": 9, "log.log_dir": str(tmp_path / "stopped")}
    assert workers.run(resume_jobs.exit_status_after_sigterm, 1, overrides=stopped, step=1) == [128 + signal.SIGTERM]
    assert read_status(tmp_path / "stopped").state == "stopped"
    assert workers.run(resume_jobs.count_saves, 1, overrides=settings) == [[1]]
    assert _left_over(tmp_path) == {"global_step=1", "global_step=1-last -> global_step=1"}
    metrics = _metrics(tmp_path)
    with metrics_file(tmp_path).open("a") as file:
        file.write('{"step": 2, "lo')
    assert workers.run(resume_jobs.count_saves, 1, overrides=settings) == [[]]
    settings["trainer.max_steps"] = 2
    assert workers.run(resume_jobs.count_saves, 1, overrides=settings) == [[2]]
    assert _metrics(tmp_path)[:1] == metrics
    assert [line["step"] for line in _metrics(tmp_path)] == [1, 2]
    assert _left_over(tmp_path) == {"global_step=2", "global_step=2-last -> global_step=2"}

    lock = tmp_path / "longpo" / "inputs" / "lock"
    with hold(lock, 600) as other:
        assert other.stdout.readline()
        (message,) = workers.run(nemo_jobs.refusal, 1, overrides=settings, checkpoints=True)
        other.kill()
    assert f"another run writes into {tmp_path}/longpo" in message

    settings["resume.resume_if_exists"] = False
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=settings, checkpoints=True)
    assert "holds checkpoints already (global_step=2), and this run would start over beside them" in message


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_rows_that_are_not_recorded_are_those_of_the_tokenizer(workers, workbench, tmp_path):
    """As in a checkpoint of NeMo's own Mistral importer."""
    checkpoint = shutil.copytree(workbench.checkpoint, tmp_path / "checkpoint")
    tokens = len(tiny_models.tiny_tokenizer(tiny_models.DEFAULT_STYLE["mistral"]))
    for multiple, rows in ((1, tokens), (128, -(-tokens // 128) * 128)):
        for name, value in (("vocab_size", None), ("make_vocab_size_divisible_by", multiple)):
            edit_recorded(checkpoint, "model.config", name, {"type": "leaf", "value": value})
        assert workers.run(nemo_jobs.embedding_rows, 1, checkpoint=str(checkpoint)) == [(rows, rows)]
