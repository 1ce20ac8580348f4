"""A run can continue after a kill, a full disk or a power loss damaged `metrics.jsonl`."""

import errno
import json
from pathlib import Path

import pytest

from nemo_longpo.checkpoints.run_directory import keep_steps, metrics_file, read_metrics
from nemo_longpo.errors import InputError

LINES = [json.dumps({"step": step, "loss": 0.5}).encode() + b"\n" for step in (1, 2, 3, 4)]


def test_later_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES))
    assert keep_steps(path, 2) == 0
    assert path.read_bytes() == b"".join(LINES[:2])


@pytest.mark.parametrize(
    "torn",
    [
        LINES[2][:-9],
        LINES[2][:-1],  # whole but for its end: the next line would be appended to it
        b"\0" * 4096,
        b"\xff\xfe\n",
        b"[]\n",
        b"7\n",
        b'{"loss": 0.5}\n',
        b'{"step": "3"}\n',
        b'{"step": true}\n',
        b"[" * 100_000 + b"\n",
        b"\n",
    ],
    ids=[
        "cut",
        "without its end",
        "zeros",
        "bytes",
        "a list",
        "a number",
        "no step",
        "a text",
        "a truth",
        "deep",
        "empty",
    ],
)
def test_a_torn_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES[:2]) + torn)
    assert keep_steps(path, 3) == 1
    assert path.read_bytes() == b"".join(LINES[:2])


def test_file_without_changes_is_not_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert keep_steps(path, 0) == 0
    assert not path.exists()
    path.write_bytes(b"".join(LINES))
    before = path.stat()
    assert keep_steps(path, 4) == 0
    assert path.stat().st_ino == before.st_ino


def test_old_file_is_replaced_atomically(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES))

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_steps(path, 2)
    assert path.read_bytes() == b"".join(LINES)
    monkeypatch.undo()
    assert keep_steps(path, 2) == 0
    assert list(Path(tmp_path).iterdir()) == [path]


def test_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be written: the disk is full.*nothing is lost"):
        keep_steps(path, 2)
    assert path.read_bytes() == b"".join(LINES)


def test_read_metrics_skips_torn_lines(tmp_path):
    assert read_metrics(tmp_path) == []
    path = metrics_file(tmp_path, "mine")
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"step": 1, "loss": 2.5}\n\0\0\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert read_metrics(tmp_path, "mine") == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]
    assert read_metrics(tmp_path) == []
