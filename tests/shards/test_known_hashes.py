"""A file that was hashed is not read again, until anything happened to it."""

import os
import shutil
from pathlib import Path

import pytest

from nemo_longpo.shards.known_hashes import is_known, read_known, state_of, write_known


@pytest.fixture
def shard(tmp_path) -> Path:
    path = tmp_path / "shard-00000.arrow"
    path.write_bytes(b"tokens")
    return path


def _remember(shard: Path, machine: str = "here") -> Path:
    memory = shard.parent / "inputs" / "checked_shards.json"
    write_known(memory, read_known(memory), {machine: {str(shard): state_of(shard, "a" * 64)}})
    return memory


def test_file_machine_and_hash_must_match(shard, tmp_path):
    assert not is_known({}, "here", shard, "a" * 64)
    known = read_known(_remember(shard))
    assert is_known(known, "here", shard, "a" * 64)
    assert not is_known(known, "there", shard, "a" * 64)
    assert not is_known(known, "here", shard, "b" * 64)
    copy = shutil.copy2(shard, tmp_path / "copy.arrow")
    assert not is_known(known, "here", copy, "a" * 64)


def test_restored_size_and_time_do_not_hide_a_change(shard):
    known, before = read_known(_remember(shard)), shard.stat()
    with shard.open("r+b") as file:
        file.write(b"T")
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (shard.stat().st_size, shard.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not is_known(known, "here", shard, "a" * 64)


def test_machines_add_to_what_is_known(shard):
    _remember(shard)
    memory = _remember(shard, "there")
    assert all(is_known(read_known(memory), machine, shard, "a" * 64) for machine in ("here", "there"))
    memory.write_text("{")
    assert read_known(memory) == {}


def test_state_and_path(shard, tmp_path, monkeypatch):
    """Each figure for itself: file systems differ in which of them a copy or a restored backup changes."""
    stat = shard.stat()
    assert state_of(shard, "a") == [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, "a"]
    known = read_known(_remember(shard))
    monkeypatch.chdir(tmp_path)
    assert is_known(known, "here", Path(shard.name), "a" * 64)


def test_files_of_a_machine_add_up(shard, tmp_path, monkeypatch):
    other = tmp_path / "shard-00001.arrow"
    other.write_bytes(b"more")
    _remember(shard)
    memory = _remember(other)
    known = read_known(memory)
    assert all(is_known(known, "here", path, "a" * 64) for path in (shard, other))

    def killed(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_known(memory, {}, {})
    assert read_known(memory) == known


def test_damaged_entry_of_a_machine_is_ignored(shard):
    memory = _remember(shard)
    memory.write_text('{"here": 3}')
    assert not is_known(read_known(memory), "here", shard, "a" * 64)
