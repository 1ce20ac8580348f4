"""A run compares shards and start checkpoint by content with those that it began with, and names changes."""

import json
import shutil
from pathlib import Path

import pytest
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs import nemo_jobs

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.shards.fingerprint import weights_fingerprint

pytestmark = [pytest.mark.distributed, pytest.mark.parametrize("workbench", ["mistral"], indirect=True)]


def _settings(workbench, run: Path, **overrides) -> dict:
    return {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": 2,
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(run),
        "trainer.max_steps": 1,
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }


def _train(workers, workbench, run: Path, **overrides) -> str:
    """The first rank's log."""
    saving = {"log__ckpt__every_n_train_steps": 1, "log__ckpt__save_optim_on_train_end": True}
    settings = _settings(workbench, run, **saving, **overrides)
    workers.run(nemo_jobs.finetune, 1, overrides=settings, checkpoints=True)
    return "".join(path.read_text() for path in (run / "longpo").rglob("nemo_log*.txt"))


def _shards(directory: Path, workbench, weights: str) -> Path:
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["mistral"])
    return pairs.write_shards(directory, workbench.records, tokenizer, len(tokenizer), weights_sha256=weights)


def test_changed_inputs_are_refused_at_resume(workers, workbench, tmp_path):
    run = tmp_path / "run"
    _train(workers, workbench, run)
    others = {
        "data__paths": _shards(tmp_path / "other-shards", workbench, "1" * 64),
        "resume__restore_config__path": import_checkpoint(
            tiny.save_tiny(tmp_path / "hf", "mistral", seed=5), tmp_path / "other-start"
        ),
    }
    for setting, path in others.items():
        settings = _settings(workbench, run, **{setting: str(path)}, trainer__max_steps=2)
        (message,) = workers.run(nemo_jobs.refusal, 1, overrides=settings, checkpoints=True)
        assert str(path) in message
        assert setting.replace("__", ".") in message
        assert "resume.accept_changes=True if you want this change" in message
    elsewhere = {
        "data__paths": str(others["data__paths"]),
        "resume__resume_from_path": str(run),
        "trainer__max_steps": 2,
    }
    settings = _settings(workbench, tmp_path / "elsewhere", **elsewhere)
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=settings, checkpoints=True)
    assert "data.paths holds shards that this run did not begin with" in message
    moved = {
        "data__paths": str(shutil.copytree(workbench.shards, tmp_path / "moved-shards")),
        "resume__restore_config__path": str(shutil.copytree(workbench.checkpoint, tmp_path / "moved-start")),
    }
    log = _train(workers, workbench, run, **moved, model__objective__beta=0.2, trainer__max_steps=2)
    assert "This run continues with model.objective.beta=0.2 instead of 0.1" in log
    assert "label_smoothing" not in log
    (given,) = run.rglob("given.json")
    begun = json.loads(given.read_text())
    assert begun["loss"].pop("model.objective.label_smoothing") == 0.0
    given.write_text(json.dumps(begun))  # as if the run had begun before this setting was
    log = _train(
        workers, workbench, run, **{setting: str(path) for setting, path in others.items()},
        resume__accept_changes=True, trainer__max_steps=3, model__objective__label_smoothing=0.1,
    )  # fmt: skip
    assert "This run continues with model.objective.label_smoothing=0.1 instead of 0.0" in log
    assert "other-shards; accepted because of resume.accept_changes=True" in log
    assert len(read_metrics(run)) == 3


def test_other_reference_weights_are_logged(workers, workbench, tmp_path):
    """In later rounds another start is intended, so it is logged and not refused."""
    weights = weights_fingerprint(workbench.hf)
    same, other = (
        _shards(tmp_path / name, workbench, name_of) for name, name_of in (("same", weights), ("other", "2" * 64))
    )
    warning = "Training starts from other weights than those that scored the shards"
    assert warning not in _train(workers, workbench, tmp_path / "first", data__paths=[str(same)])
    log = _train(workers, workbench, tmp_path / "second", data__paths=[str(same), str(other)])
    (line,) = (line for line in log.splitlines() if warning in line)
    assert f"{other} by 222222222222" in line
    assert str(same) not in line
    alone = {"data__paths": [str(other)], "model__objective__reference_free": True}
    assert warning not in _train(workers, workbench, tmp_path / "third", **alone), "it reads no reference"


def test_changed_shard_stops_all_ranks(workers, workbench, tmp_path):
    """A token was replaced by another valid one, so only the hash shows it."""
    shards = shutil.copytree(workbench.shards, tmp_path / "shards")
    (file,) = shards.glob("*.arrow")
    content = bytearray(file.read_bytes())
    position = bytes(content).index(workbench.records[0].trunk_ids.tobytes())
    content[position] ^= 1
    parallel = {"trainer__devices": 2, "trainer__strategy__context_parallel_size": 2, "data__paths": str(shards)}
    two_ranks = _settings(workbench, tmp_path / "run", **parallel)
    workers.run(nemo_jobs.finetune, 2, overrides=two_ranks)
    memory = tmp_path / "run" / "longpo" / "inputs" / "checked_shards.json"
    assert str(file) in memory.read_text()
    file.write_bytes(content)
    first, second = workers.run(nemo_jobs.refusal, 2, overrides=two_ranks)
    assert first == second
    assert first.startswith(f"{file} has sha256")
    (message,) = workers.run(
        nemo_jobs.refusal,
        1,
        overrides=_settings(workbench, tmp_path / "new", data__paths=str(shards)),
    )
    assert message == first
    workers.run(
        nemo_jobs.finetune, 1,
        overrides=_settings(workbench, tmp_path / "new", data__paths=str(shards), data__check_hashes=False),
    )  # fmt: skip
