"""Training starts and resumes only from undamaged checkpoints; otherwise it ends with one sentence."""

import re
import shutil
from pathlib import Path

import pytest
from support.jobs import integrity_jobs

from nemo_longpo.checkpoints.integrity import RECORD, check, list_files, read_record
from nemo_longpo.checkpoints.run_directory import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.parametrize("workbench", ["mistral"], indirect=True)]


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def settings(workbench, run: Path, **more) -> dict:
    return {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": 2,
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(run),
        "log.ckpt.every_n_train_steps": 1,
        "log.ckpt.save_optim_on_train_end": True,
        "trainer.devices": 2,
        "trainer.max_steps": 1,
        "trainer.strategy.context_parallel_size": 2,
        **more,
    }


def outcome(workers, overrides: dict, **job) -> str | None:
    """What both ranks say."""
    first, second = workers.run(integrity_jobs.outcome, 2, overrides=overrides, **job)
    assert first == second
    return first


DAMAGE = {
    "flipped weights": (flip, "weights/__0_0.distcp", "is damaged: its sha256 is"),
    "flipped tokenizer": (flip, "context/hf/tokenizer.json", "is damaged: its sha256 is"),
    "no common state": (Path.unlink, "weights/common.pt", "is missing"),
}
WITHOUT_RECORD = {
    "no metadata": (Path.unlink, "weights/.metadata", "is missing"),
    "no configuration": (Path.unlink, "context/io.json", "is missing"),
    "cut common state": (cut, "weights/common.pt", "is damaged: "),
    "cut weights": (cut, "weights/__0_0.distcp", "is truncated: "),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damaged_start_is_refused(fault, workbench, workers, tmp_path):
    damage, name, message = DAMAGE[fault]
    start = shutil.copytree(workbench.checkpoint, tmp_path / "start")
    damage(start / name)
    said = outcome(workers, settings(workbench, tmp_path / "run", **{"resume.restore_config.path": str(start)}))
    assert said is not None
    assert said.startswith(f"{start / name} ")
    assert message in said
    assert not read_metrics(tmp_path / "run")


@pytest.mark.parametrize("fault", WITHOUT_RECORD)
def test_damaged_start_without_a_record_is_refused(fault, workbench, workers, tmp_path):
    damage, name, message = WITHOUT_RECORD[fault]
    start = shutil.copytree(workbench.checkpoint, tmp_path / "start")
    (start / RECORD).unlink()
    damage(start / name)
    said = outcome(workers, settings(workbench, tmp_path / "run", **{"resume.restore_config.path": str(start)}))
    assert said is not None
    assert said.startswith(f"{start / name} ")
    assert message in said


def test_changed_checkpoint_of_a_run_is_refused(workbench, workers, tmp_path):
    run = tmp_path / "run"
    assert outcome(workers, settings(workbench, run)) is None
    (checkpoint,) = (path for path in (run / "longpo" / "checkpoints").iterdir() if not path.is_symlink())
    assert read_record(checkpoint).keys() == list_files(checkpoint).keys()
    assert {"weights/__0_0.distcp", "weights/__1_0.distcp", "context/hf/tokenizer.json"} <= list_files(
        checkpoint
    ).keys()
    check(checkpoint, hashes=True)

    flip(checkpoint / "weights" / "__1_0.distcp")
    on = settings(workbench, run, **{"trainer.max_steps": 2})
    said = outcome(workers, on)
    assert said is not None
    assert "checkpoints" in said
    assert "/weights/__1_0.distcp is damaged: its sha256 is" in said
    assert outcome(workers, on | {"resume.check_hashes": False}) is None
    assert _steps(run) == [1, 2]


def test_run_continues_after_a_full_disk(workbench, workers, tmp_path):
    run = tmp_path / "run"
    assert outcome(workers, settings(workbench, run)) is None
    on = settings(workbench, run, **{"trainer.max_steps": 3})
    said = outcome(workers, on, largest_file=500_000)
    assert said is not None
    folder = run / "longpo" / "checkpoints"
    assert said.startswith(f"{folder} cannot be written: ")
    assert re.search("(the disk took no more|a file may not become that large here); make room and run the same", said)
    assert outcome(workers, on) is None
    assert _steps(run) == [1, 2, 3]


def _steps(run: Path) -> list[int]:
    return [metrics["step"] for metrics in read_metrics(run)]
