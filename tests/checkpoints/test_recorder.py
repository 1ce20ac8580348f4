"""Records are written beside the training, and never into a checkpoint that is being removed."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from nemo_longpo.checkpoints import recorder as recorders
from nemo_longpo.checkpoints.integrity import RECORD, check, read_record, write_record
from nemo_longpo.checkpoints.recorder import Recorder
from nemo_longpo.errors import InputError


@pytest.fixture
def checkpoints(tmp_path) -> list[Path]:
    paths = [tmp_path / f"step={step}" for step in (1, 2)]
    for path in paths:
        (path / "weights").mkdir(parents=True)
        (path / "weights" / "__0_0.distcp").write_bytes(os.urandom(1000))
    return paths


@pytest.fixture
def slow(monkeypatch) -> threading.Event:
    """Hashing waits for this event, and asks whether to go on each millisecond."""
    released = threading.Event()

    def write_slowly(checkpoint, progress):
        while not released.is_set():
            progress(0)
            time.sleep(0.001)
        write_record(checkpoint, progress)

    monkeypatch.setattr(recorders, "write_record", write_slowly)
    return released


def test_every_checkpoint_gets_its_record(checkpoints, slow):
    recorder = Recorder()
    for path in checkpoints:
        recorder.record(path)
    assert recorder.unfinished == checkpoints
    recorder.collect(wait=False)
    assert not any((path / RECORD).exists() for path in checkpoints)
    slow.set()
    recorder.collect(wait=True)
    assert recorder.unfinished == []
    for path in checkpoints:
        check(path, hashes=True)
        assert read_record(path).keys() == {"weights/__0_0.distcp"}


def test_a_forgotten_checkpoint_is_left_alone(checkpoints, slow):
    recorder = Recorder()
    for path in checkpoints:
        recorder.record(path)
    for path in reversed(checkpoints):  # one that waits, one in work
        recorder.forget(path)
        shutil.rmtree(path)
    recorder.forget(checkpoints[0])
    slow.set()
    recorder.collect(wait=True)
    assert not any(path.exists() for path in checkpoints)


def test_errors_of_a_forgotten_checkpoint_are_dropped(checkpoints):
    recorder = Recorder()
    shutil.rmtree(checkpoints[0])
    (checkpoints[0]).write_text("no directory")
    recorder.record(checkpoints[0])
    recorder.forget_all()
    recorder.collect(wait=True)


def test_full_disk_is_raised_by_collect(checkpoints, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    recorder = Recorder()
    recorder.record(checkpoints[0])
    with pytest.raises(InputError, match=r"step=1/integrity\.json cannot be written: the disk is full"):
        recorder.collect(wait=True)
    recorder.collect(wait=True)
    assert read_record(checkpoints[0]) is None


def test_forgetting_waits_for_the_end_of_the_work(checkpoints, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def write(checkpoint, progress):
        begun.set()
        try:
            while True:
                progress(0)
        finally:
            time.sleep(0.05)
            ended.set()

    monkeypatch.setattr(recorders, "write_record", write)
    recorder = Recorder()
    recorder.record(checkpoints[0])
    assert begun.wait(10)
    recorder.forget(checkpoints[0])
    assert ended.is_set()
