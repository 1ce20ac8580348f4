"""The reported speed of a run, and the error if metrics cannot be written."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_longpo.errors import InputError


def test_utilisation_needs_a_known_peak():
    from nemo_longpo.megatron.metrics import compute_speed

    assert compute_speed(400e12, "NVIDIA H100 80GB HBM3") == pytest.approx(
        {"tflops_per_device": 400.0, "mfu": 400 / 989}, rel=1e-9
    )
    for device in (None, "NVIDIA GeForce 256"):
        assert compute_speed(400e12, device) == {"tflops_per_device": 400.0}


def test_a_full_disk_is_named():
    from nemo_longpo.megatron.metrics import MetricsCallback
    from nemo_longpo.megatron.model import WORK

    callback = MetricsCallback()
    callback._path = Path("/dev/full")
    callback._started = 0.0
    callback._values = dict.fromkeys((*WORK, "loss"), 1.0)
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(global_batch_size=1),
        global_step=1,
        callback_metrics={},
        world_size=1,
        is_global_zero=True,
    )
    with pytest.raises(InputError, match="/dev/full cannot be written: the disk is full; make room and run the same"):
        callback.on_train_batch_end(trainer, SimpleNamespace(log_dict=lambda *args, **named: None))
