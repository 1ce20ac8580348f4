"""Files appear whole or not at all; a full disk is one clear sentence."""

import json
import subprocess
import sys

import pytest

from nemo_longpo.data_tools.runner.files import commit, remove_partial_files

# The kernel refuses to let this process write files of more than 64 KiB, as a full disk refuses at some byte.
LIMITED = """
import resource, sys
from pathlib import Path
from nemo_longpo.data_tools.runner.files import commit
from nemo_longpo.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
commit(Path(sys.argv[1]) / "small", "x")
try:
    commit(Path(sys.argv[1]) / "large", "x" * (1 << 20))
except InputError as error:
    print(error)
"""


def test_commit_replaces_or_keeps(tmp_path):
    commit(tmp_path / "a", "one")
    commit(tmp_path / "a", "two")
    commit(tmp_path / "a", "three", keep_existing=True)
    commit(tmp_path / "b", "naïve 你好", keep_existing=True)
    assert (tmp_path / "a").read_text() == "two"
    assert (tmp_path / "b").read_text(encoding="utf-8") == "naïve 你好"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_no_room_is_an_input_error_and_leaves_what_was_there(tmp_path):
    said = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "large cannot be written: a file may not become that large here; make room" in said.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_other_failures_are_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError):
        commit(tmp_path / "missing" / "a", "x")


def test_leftovers_can_be_removed(tmp_path):
    (tmp_path / ".part-00001.jsonl.123.tmp").write_text("half")
    (tmp_path / "part-00000.jsonl").write_text(json.dumps({}))
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.jsonl"]
