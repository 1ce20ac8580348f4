"""A `.metadata` is a pickle that people send each other: only what describes a checkpoint may be in it."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from nemo_longpo.checkpoints.metadata import read_metadata
from nemo_longpo.errors import InputError


class Runs:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


class Fetches:
    """Pickled as `getattr(owner, name)`, as some versions of Python do with members of enumerations."""

    def __init__(self, owner: object, name: str):
        self.found = owner, name

    def __reduce__(self):
        return getattr, self.found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Metadata({}, planner_data=Runs(), storage_data={}), "has no place in it"),
        (
            Metadata({}, planner_data=torch.nn.Linear, storage_data={}),
            r"torch\.nn\.modules\.linear\.Linear has no place",
        ),
        (Metadata({}, planner_data=Fetches(Metadata, "__init__"), storage_data={}), "getattr of .* has no place in it"),
        (Metadata({}, planner_data=Fetches(_MEM_FORMAT_ENCODING, "mro"), storage_data={}), "damaged"),
        (Metadata({}), "does not say where the tensors lie"),
        ({"state": 1}, "does not say where the tensors lie"),
    ],
)
def test_anything_else_is_refused(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=message):
        read_metadata(tmp_path)
    assert not Path("ran").exists()


def test_enumerations_are_read_however_they_were_pickled(tmp_path):
    member = _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST
    for number, pickled in enumerate((member, Fetches(_MEM_FORMAT_ENCODING, member.name))):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / ".metadata").write_bytes(pickle.dumps(Metadata({}, planner_data=pickled, storage_data={})))
        assert read_metadata(directory).planner_data is member


def test_what_megatron_writes_is_read_without_megatron(tmp_path):
    """Its metadata names two classes of its own."""
    from megatron.core.dist_checkpointing.strategies.torch import MCoreMetadata, MCoreSavePlan

    written = MCoreMetadata({}, storage_data={}, mcore_data={})
    written.all_local_plans = [MCoreSavePlan([], mcore_data={})]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(written))
    code = (
        "import pathlib, sys; from nemo_longpo.checkpoints.metadata import read_metadata; "
        "read_metadata(pathlib.Path(sys.argv[1])); assert 'megatron' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
