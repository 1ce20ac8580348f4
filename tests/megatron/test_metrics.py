"""The reported speed and memory of a run, and the error if metrics cannot be written."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nemo_longpo import live_status
from nemo_longpo.errors import InputError


def test_utilisation_needs_a_known_peak():
    from nemo_longpo.megatron.metrics import compute_speed

    assert compute_speed(400e12, "NVIDIA H100 80GB HBM3") == pytest.approx(
        {"tflops_per_device": 400.0, "mfu": 400 / 989}, rel=1e-9
    )
    for device in (None, "NVIDIA GeForce 256"):
        assert compute_speed(400e12, device) == {"tflops_per_device": 400.0}


def end_of_step(path: Path) -> None:
    from nemo_longpo.megatron.metrics import MetricsCallback
    from nemo_longpo.megatron.model import WORK

    callback = MetricsCallback()
    callback._path = path
    callback._started = 0.0
    callback._values = dict.fromkeys((*WORK, "loss"), 1.0)
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(global_batch_size=1),
        global_step=1,
        callback_metrics={},
        world_size=1,
        is_global_zero=True,
    )
    callback.on_train_batch_end(trainer, SimpleNamespace(log_dict=lambda *args, **named: None))


def test_a_full_disk_is_named():
    with pytest.raises(InputError, match="/dev/full cannot be written: the disk is full; make room and run the same"):
        end_of_step(Path("/dev/full"))


def test_the_first_rank_says_how_far_training_has_come(tmp_path):
    from nemo_longpo.megatron.metrics import MetricsCallback
    from nemo_longpo.megatron.model import WORK

    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(global_batch_size=1),
        global_step=100,
        max_steps=200,
        callback_metrics={},
        world_size=1,
        is_global_zero=False,
        log_dir=str(tmp_path / "tb_logs" / "longpo"),
    )
    module = SimpleNamespace(log_dict=lambda *args, **named: None)
    Path(trainer.log_dir).mkdir(parents=True)
    for first in (False, True):
        trainer.is_global_zero = first
        callback = MetricsCallback()
        callback.on_exception(trainer, module, ValueError("before the first step"))
        callback.on_train_start(trainer, module)
        callback._status and callback._status.update(now=True)
        assert (live_status.read_status(tmp_path) is not None) is first
    callback._started = 0.0
    callback._values = {**dict.fromkeys(WORK, 1.0), "loss": 2.5, "rewards/margins": 0.25}
    trainer.global_step = 101
    callback._status._written = 0.0  # a second ago
    callback.on_train_batch_end(trainer, module)
    said = live_status.read_status(tmp_path)
    assert (said.what, said.done, said.total, said.unit) == ("training longpo", 101, 200, "step")
    assert said.said.startswith("loss 2.5, margin 0.25, tokens/s ")
    assert said.metrics["step"] == 101
    callback.on_exception(trainer, module, InputError("record 7 is damaged"))
    assert live_status.read_status(tmp_path).said == "record 7 is damaged"
    callback.on_fit_end(trainer, module)
    assert live_status.read_status(tmp_path).state == "done"


def test_memory_is_written_where_there_is_a_gpu(tmp_path, monkeypatch):
    for present, expected in ((True, 61.5), (False, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: int(61.5 * 2**30))
        end_of_step(tmp_path / "metrics.jsonl")
        line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
        assert line.get("memory_gib") == expected
        assert ("mfu" in line) == present
