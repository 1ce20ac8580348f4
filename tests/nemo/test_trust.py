"""Training runs no code of a checkpoint unless it is allowed to; then each of these would run."""

import shutil
from pathlib import Path

import pytest
from support.exploits import EXPLOITS
from support.jobs import nemo_jobs
from support.waiting import wait_until

from nemo_longpo.checkpoints.integrity import write_record
from nemo_longpo.checkpoints.run_directory import find_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.parametrize("workbench", ["mistral"], indirect=True)]


@pytest.fixture
def settings(workbench, tmp_path) -> dict[str, object]:
    return {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": 4,
        "resume.restore_config.path": str(tmp_path / "start"),
        "log.log_dir": str(tmp_path / "run"),
        "trainer.max_steps": 1,
    }


def harmful(source: Path, target: Path, exploit: str, trap: Path) -> str:
    """Make a copy that springs the trap; return the message of its refusal."""
    return plant_in(shutil.copytree(source, target), exploit, trap)


def plant_in(checkpoint: Path, exploit: str, trap: Path) -> str:
    """The hashes are adjusted too, as an attacker would."""
    plant, sentence = EXPLOITS[exploit]
    plant(checkpoint, trap)
    write_record(checkpoint)
    return sentence


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_start_that_runs_code_is_refused(exploit, workbench, settings, workers, tmp_path):
    trap = tmp_path / "trap"
    sentence = harmful(workbench.checkpoint, tmp_path / "start", exploit, trap)
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=settings)
    assert sentence in message
    assert not trap.exists()
    assert not list((tmp_path / "run").rglob("checkpoints/*"))
    workers.run(nemo_jobs.attempt, 1, overrides=settings | {"resume.trust_checkpoint": True})
    wait_until(trap.exists)  # another process makes it in some of the cases


@pytest.mark.parametrize("exploit", ["code of the tokenizer", "a pickle in .metadata", "a pickle in common.pt"])
def test_resume_that_runs_code_is_refused(exploit, workbench, settings, workers, tmp_path):
    settings |= {"resume.restore_config.path": str(workbench.checkpoint), "trainer.max_steps": 2}
    trained = settings | {"log.ckpt.every_n_train_steps": 1, "trainer.max_steps": 1}
    workers.run(nemo_jobs.finetune, 1, overrides=trained, checkpoints=True)
    last = find_checkpoint(tmp_path / "run")
    trap = tmp_path / "trap"
    sentence = plant_in(last, exploit, trap)
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=settings)
    assert sentence in message
    assert not trap.exists()
