"""A checkpoint's record of its files: its content, the damage it detects, and writing it during training."""

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from support.waiting import PATIENCE_SECONDS

from nemo_longpo.checkpoints import integrity
from nemo_longpo.checkpoints.integrity import (
    RECORD,
    Recorder,
    check,
    check_contents,
    check_sizes,
    fingerprint,
    list_files,
    read_record,
    share_of,
    write_record,
)
from nemo_longpo.errors import InputError

FILES = {
    "weights/__0_0.distcp": os.urandom(5_000_000),  # more than one block
    "weights/__1_0.distcp": b"second rank",
    "weights/.metadata": b"pickle",
    "weights/common.pt": b"zip",
    "context/io.json": b"{}",
    "context/hf/tokenizer.json": b'{"model": {}}',
    "context/hf/added_tokens.json": b"",
}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    root = tmp_path / "step=2"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def _damage(checkpoint: Path) -> str | None:
    """Return the message of a full check."""
    record = read_record(checkpoint)
    assert record is not None
    try:
        check_sizes(checkpoint, record)
        check_contents(checkpoint, record)
    except InputError as error:
        return str(error)
    return None


def test_record_has_size_and_sha256_per_file(checkpoint):
    read = []
    write_record(checkpoint, read.append)
    content = json.loads((checkpoint / RECORD).read_text())
    assert content["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()
    }
    assert sum(read) == sum(map(len, FILES.values()))
    assert _damage(checkpoint) is None


def test_links_locks_and_hidden_files_are_ignored(checkpoint):
    (checkpoint / "weights" / "link.distcp").symlink_to("__0_0.distcp")
    for name in ("context/hf/.cache/x.json", "context/hf/tokenizer.json.lock", ".nfs0001", "weights/.hidden"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"x")
    write_record(checkpoint)
    assert list_files(checkpoint).keys() == FILES.keys()
    assert _damage(checkpoint) is None


def test_copy_keeps_its_record(checkpoint, tmp_path):
    write_record(checkpoint)
    copy = shutil.move(shutil.copytree(checkpoint, tmp_path / "copy"), tmp_path / "moved")
    assert _damage(copy) is None
    assert fingerprint(copy) == fingerprint(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoint, name):
    write_record(checkpoint)
    (checkpoint / name).unlink()
    assert str(_damage(checkpoint)).startswith(f"{checkpoint / name} is missing; ")


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_another_size_is_named(checkpoint, name, change):
    write_record(checkpoint)
    size = len(FILES[name])
    os.truncate(checkpoint / name, size + change)
    assert str(_damage(checkpoint)).startswith(f"{checkpoint / name} has {size + change} bytes and was written with ")


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_one_flipped_bit_is_named(checkpoint, name):
    write_record(checkpoint)
    content = bytearray(FILES[name])
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)
    assert str(_damage(checkpoint)).startswith(f"{checkpoint / name} is damaged: ")


def test_no_record(checkpoint):
    assert read_record(checkpoint) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not readable JSON"),
        ("[]", "should hold a JSON object"),
        ('{"version": 2, "files": {}}', "is of version 2, and only 1 is known here"),
        ('{"version": 1}', "field 'files' is missing"),
        ('{"version": 1, "files": {"a": 3}}', "field 'files.a' should be an object, not 3"),
        (
            '{"version": 1, "files": {"a": {"size": true, "sha256": ""}}}',
            "field 'files.a.size' should be a",
        ),
        ('{"version": 1, "files": {"../a": {"size": 1, "sha256": ""}}}', "a file outside the checkpoint, '../a'"),
        (
            '{"version": 1, "files": {"/etc/passwd": {"size": 1, "sha256": ""}}}',
            "a file outside the checkpoint, '/etc/passwd'",
        ),
        ('{"version": 1, "files": {"a\\u0000": {"size": 1, "sha256": ""}}}', "a file outside the checkpoint, 'a"),
    ],
)
def test_damaged_record_is_refused(checkpoint, content, reason):
    (checkpoint / RECORD).write_text(content)
    with pytest.raises(InputError) as refusal:
        read_record(checkpoint)
    assert str(checkpoint / RECORD) in str(refusal.value)
    assert reason in str(refusal.value)


def test_a_full_disk_leaves_no_record(checkpoint, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=f"{RECORD} cannot be written: the disk is full"):
        write_record(checkpoint)
    assert read_record(checkpoint) is None
    assert list_files(checkpoint).keys() == FILES.keys()
    assert not list(checkpoint.glob(".integrity*"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 16])
def test_ranks_share_the_files_evenly(checkpoint, ranks):
    write_record(checkpoint)
    record = read_record(checkpoint)
    shares = [share_of(record, rank, ranks) for rank in range(ranks)]
    assert sorted(name for share in shares for name in share) == sorted(FILES)
    if ranks > 1:
        assert list(shares[0]) == ["weights/__0_0.distcp"], "the largest file is enough for one rank"


def test_fingerprint_follows_the_content(checkpoint, tmp_path):
    for recorded in (False, True):
        if recorded:
            write_record(checkpoint)
        other = shutil.copytree(checkpoint, tmp_path / f"other-{recorded}")
        assert fingerprint(other) == fingerprint(checkpoint)
        (other / RECORD).unlink(missing_ok=True)
        (other / "context" / "io.json").write_bytes(b"[]")
        if recorded:
            write_record(other)
        assert fingerprint(other) != fingerprint(checkpoint)


def test_fingerprints_without_records(tmp_path):
    """Large files are sampled; two models of one architecture differ everywhere."""
    for name, value in (("one", b"\0"), ("same", b"\0"), ("other", b"\1")):
        (tmp_path / name / "weights").mkdir(parents=True)
        (tmp_path / name / "weights" / "__0_0.distcp").write_bytes(value * (1 << 24))
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "same")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "other")


@pytest.fixture
def checkpoints(tmp_path) -> list[Path]:
    paths = [tmp_path / f"step={step}" for step in (1, 2)]
    for path in paths:
        (path / "weights").mkdir(parents=True)
        (path / "weights" / "__0_0.distcp").write_bytes(os.urandom(1000))
    return paths


@pytest.fixture
def slow(monkeypatch) -> threading.Event:
    """Hashing waits for this event, and checks every millisecond whether to continue."""
    released = threading.Event()

    def write_slowly(checkpoint, progress):
        while not released.is_set():
            progress(0)
            time.sleep(0.001)
        write_record(checkpoint, progress)

    monkeypatch.setattr(integrity, "write_record", write_slowly)
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


def test_errors_of_forgotten_checkpoints_are_dropped(checkpoints):
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


def test_forgetting_waits_for_running_work(checkpoints, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def write(checkpoint, progress):
        begun.set()
        try:
            while True:
                progress(0)
        finally:
            time.sleep(0.05)
            ended.set()

    monkeypatch.setattr(integrity, "write_record", write)
    recorder = Recorder()
    recorder.record(checkpoints[0])
    assert begun.wait(PATIENCE_SECONDS)
    recorder.forget(checkpoints[0])
    assert ended.is_set()
