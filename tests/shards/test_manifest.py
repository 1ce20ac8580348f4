"""Manifests have fields of the right type, plain names and matching sums; hashed files are remembered."""

import json
import os
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from support.small_shards import edit_manifest, make_record, write

from nemo_longpo.errors import InputError
from nemo_longpo.shards.manifest import is_known, load_manifest, read_known, state_of, write_known
from nemo_longpo.shards.reader import ShardReader


@pytest.fixture
def shards(tmp_path):
    write(tmp_path / "shards", *(make_record(index) for index in range(3)))
    return tmp_path / "shards"


def set_field(path: str, value: Any):
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]

    def change(content: Any) -> None:
        for key in parents:
            content = content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("files.0.name", "../shard-00000.arrow", r"'files\[0\].name' should be a plain file name"),
        ("files.0.name", "/etc/passwd", "plain file name"),
        ("files.0.name", "..\\shard-00000.arrow", "plain file name"),
        ("files.0.name", "a\u0000b", "plain file name"),
        ("files.0.name", "x" * 5000, "plain file name"),
        ("files.0.name", "..", "plain file name"),
        ("files.0.name", "shard-00001.arrow", "names 'shard-00001.arrow' 2 times"),
        ("files.0.sha256", "zz", r"'files\[0\].sha256' should be 64 hexadecimal digits"),
        ("files.0.records", "2", r"'files\[0\].records' should be a whole number from 0, below .*, not '2'"),
        ("files.0.records", True, "not True"),
        ("files.0.records", 3, "'files' holds 4 documents, but 'counts.documents' is 3"),
        ("files.0.records", 10**12, "cannot hold"),
        ("files.0.bytes", 2**70, "below 2 to the 63rd"),
        ("files.0.size", 1, r"'files\[0\].size' is unknown"),
        ("files", None, "'files' should be a list, not None"),
        ("counts.turns", -1, "'counts.turns' should be a whole number"),
        ("counts", [], "'counts' should be an object"),
        ("length_histogram", {"12": 3}, "'12' is none"),
        ("length_histogram", {"8": 1}, "'length_histogram' holds 1 documents"),
        ("reference", "me", "'reference' should be an object, not 'me'"),
        ("reference.rope", None, "'reference.rope' should be an object"),
        ("ref_context", "medium", "'ref_context' should be one of short, long, not 'medium'"),
        ("vocab_size", 0, "'vocab_size' is 0"),
        ("vocab_size", 1e3, "should be a whole number"),
        ("generation", 3, "'generation' should be an object"),
        ("generation", {"respond": 3}, "'generation.respond' should be an object"),
    ],
)
def test_one_sentence_names_file_and_field(shards, path, value, sentence):
    edit_manifest(shards, set_field(path, value))
    with pytest.raises(InputError, match=rf"^{shards}/manifest\.json.*{sentence}.*rebuild the shards"):
        ShardReader(shards)


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a manifest, but for what other programs wrote into it."""
    for key, item in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(item, dict | list) and key not in ("generation", "rope"):
            yield from places(item, (*path, key))


def test_missing_or_mistyped_field_is_refused(shards):
    whole = json.loads((shards / "manifest.json").read_text())
    allowed = set()
    for path in places(whole):
        for value in (None, -1, 1.5, 2**70, True, "", "9" * 30, [], {}, [[]], {"a": None}, float("nan"), "\ud800"):
            content = deepcopy(whole)
            set_field(".".join(map(str, path)), value)(content)
            (shards / "manifest.json").write_text(json.dumps(content))
            try:
                load_manifest(shards)
                allowed.add(path[-1])
            except InputError:
                pass
        content = deepcopy(whole)
        owner = content
        for key in path[:-1]:
            owner = owner[key]
        del owner[path[-1]]
        (shards / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(InputError):
            load_manifest(shards)
    names = {"tokenizer_fingerprint", "chat_template_hash", "weights_sha256", "dtype", "name"}  # "999…" is one
    assert allowed == {"rope", "generation"} | names


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


def test_machines_add_known_files(shard):
    _remember(shard)
    memory = _remember(shard, "there")
    assert all(is_known(read_known(memory), machine, shard, "a" * 64) for machine in ("here", "there"))
    memory.write_text("{")
    assert read_known(memory) == {}


def test_state_and_path(shard, tmp_path, monkeypatch):
    """Each value alone: file systems differ in which of them a copy or a restored backup changes."""
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
