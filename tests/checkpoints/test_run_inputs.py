"""A run's inputs are distinguished by content and order, never by their paths."""

import errno
import json
from dataclasses import replace
from importlib import metadata

import pytest

from nemo_longpo import __version__
from nemo_longpo.checkpoints.run_inputs import (
    FILE,
    VERSIONS_FILE,
    Given,
    RunInputs,
    read_inputs,
    write_inputs,
    write_versions,
)
from nemo_longpo.errors import InputError

BEGUN = RunInputs(
    Given("start", "a" * 64), (Given("one", "1" * 64), Given("two", "2" * 64)), {"model.objective.beta": 0.1}
)


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, []),
        ({"start": Given("elsewhere/start", "a" * 64)}, []),
        ({"shards": (Given("moved/one", "1" * 64), Given("moved/two", "2" * 64))}, []),
        (
            {"start": Given("other", "b" * 64)},
            ["resume.restore_config.path=other is not the checkpoint that this run began with (start)"],
        ),
        (
            {"start": Given("start", "b" * 64)},
            ["resume.restore_config.path=start is not the checkpoint that this run began with"],
        ),
        (
            {"shards": BEGUN.shards[::-1]},
            ["data.paths are in another order than this run began with (one, two)"],
        ),
        (
            {"shards": (BEGUN.shards[0], Given("two", "3" * 64))},
            [
                "data.paths holds shards that this run did not begin with, in two",
                "data.paths lacks shards that this run began with, then in two",
            ],
        ),
        ({"shards": BEGUN.shards[:1]}, ["data.paths lacks shards that this run began with, then in two"]),
        (
            {"shards": (*BEGUN.shards, Given("three", "3" * 64))},
            ["data.paths holds shards that this run did not begin with, in three"],
        ),
        ({"start": None}, []),
        (
            {"shards": (*BEGUN.shards, BEGUN.shards[0])},
            ["data.paths repeats other shards than this run began with (one, two)"],
        ),
    ],
)
def test_changes_are_named(changes, sentences):
    assert list(replace(BEGUN, **changes).changes_from(BEGUN)) == sentences


def test_other_loss_is_named():
    now = replace(BEGUN, loss={"model.objective.beta": 0.2, "model.objective.new": 1})
    assert list(now.changes_from(BEGUN)) == []
    assert list(now.loss_changes_from(BEGUN)) == ["model.objective.beta=0.2 instead of 0.1"]


def test_run_without_a_start_checkpoint():
    assert list(BEGUN.changes_from(replace(BEGUN, start=None))) == []


def test_full_disk_keeps_the_old_record(tmp_path, monkeypatch):
    write_inputs(tmp_path, BEGUN)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"given\.json cannot be written: the disk is full.*nothing is lost"):
        write_inputs(tmp_path, replace(BEGUN, start=None))
    assert read_inputs(tmp_path) == BEGUN


def test_record_round_trip(tmp_path):
    assert read_inputs(tmp_path / "inputs") is None
    for inputs in (BEGUN, replace(BEGUN, start=None)):
        write_inputs(tmp_path / "inputs", inputs)
        assert read_inputs(tmp_path / "inputs") == inputs
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == [FILE]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "start": null, "shards": [], "loss": {}}',
        '{"version": 1, "start": 3, "shards": [], "loss": {}}',
        '{"version": 1, "start": null, "shards": [], "loss": []}',
        '{"version": 1, "start": null, "shards": 3, "loss": {}}',
    ],
)
def test_a_damaged_record_is_one_sentence(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=r"given\.json.*; remove it"):
        read_inputs(tmp_path)


def test_versions_are_those_of_this_environment(tmp_path):
    write_versions(tmp_path, "NVIDIA H100 80GB HBM3")
    found = json.loads((tmp_path / VERSIONS_FILE).read_text())
    assert found["torch"] == metadata.version("torch")
    assert found["nemo_longpo"] == __version__
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    write_versions(tmp_path, None)
    assert "device" not in json.loads((tmp_path / VERSIONS_FILE).read_text())
