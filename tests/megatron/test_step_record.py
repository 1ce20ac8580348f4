"""The reported speed and memory of a run, and the error if metrics cannot be written."""

import json
from pathlib import Path

import pytest
import torch

from nemo_longpo import live_status
from nemo_longpo.errors import InputError


def test_utilisation_needs_a_known_peak():
    from nemo_longpo.megatron.step_record import compute_speed

    assert compute_speed(400e12, "NVIDIA H100 80GB HBM3") == pytest.approx(
        {"tflops_per_device": 400.0, "mfu": 400 / 989}, rel=1e-9
    )
    for device in (None, "NVIDIA GeForce 256"):
        assert compute_speed(400e12, device) == {"tflops_per_device": 400.0}


VALUES = {"tokens": 1.0, "flops": 1.0, "loss": 2.5, "rewards/margins": 0.25}


def begin(path: Path, step: int = 0, first: bool = True):
    from nemo_longpo.megatron.step_record import StepRecord

    record = StepRecord(path, step=step, steps=200, pairs=1, devices=1, is_first_rank=first)
    record.begin_step()
    return record


def end_of_step(record, step: int = 1) -> None:
    record.end_step(step, VALUES, lr=1.0, grad_norm=1.0, is_skipped=False)


def test_a_full_disk_is_named(tmp_path):
    record = begin(tmp_path / "metrics.jsonl")
    record.path = Path("/dev/full")
    with pytest.raises(InputError, match="/dev/full cannot be written: the disk is full; make room and run the same"):
        end_of_step(record)


def test_the_first_rank_says_how_far_training_has_come(tmp_path):
    metrics = tmp_path / "tb_logs" / "longpo" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    for first in (False, True):
        record = begin(metrics, step=100, first=first)
        record.status and record.status.update(now=True)
        assert (live_status.read_status(tmp_path) is not None) is first
    record.status._written = 0.0  # a second ago
    end_of_step(record, 101)
    said = live_status.read_status(tmp_path)
    assert (said.what, said.done, said.total, said.unit) == ("training longpo", 101, 200, "step")
    assert said.said.startswith("loss 2.5, margin 0.25, tokens/s ")
    assert said.metrics["step"] == 101
    record.end(InputError("record 7 is damaged"))
    assert live_status.read_status(tmp_path).said == "record 7 is damaged"
    record.end()
    assert live_status.read_status(tmp_path).state == "done"


def test_memory_is_written_where_there_is_a_gpu(tmp_path, monkeypatch):
    for present, expected in ((True, 61.5), (False, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: int(61.5 * 2**30))
        end_of_step(begin(tmp_path / "metrics.jsonl"))
        line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
        assert line.get("memory_gib") == expected
        assert ("mfu" in line) == present
