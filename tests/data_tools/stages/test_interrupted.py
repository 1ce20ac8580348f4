"""Ctrl-C in the middle of a part: finished requests are kept, and the output is that of an uninterrupted run."""

import json

import pytest
from support.published_pairs import text_pair

from nemo_longpo.data_tools.engines.hf_engine import TransformersEngine

TURNS = (1, 3, 2, 4, 2, 3)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(text_pair(index, turns)) + "\n" for index, turns in enumerate(TURNS)))
    return path


class Interrupted:
    """Lets so many batches of an engine pass, notes their sizes, then presses Ctrl-C; None never does."""

    def __init__(self, monkeypatch, name, after):
        self.sizes, self.left = [], after
        work = getattr(TransformersEngine, name)

        def run(engine, requests, *others):
            if self.left == len(self.sizes):
                raise KeyboardInterrupt
            self.sizes.append(len(requests))
            return work(engine, requests, *others)

        monkeypatch.setattr(TransformersEngine, name, run)


def snapshot(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("words", "worker"),
    [
        (("respond", "--max-new-tokens", 6, "--temperature", 0.8, "--input"), "_generate_batch"),
        (("score", "--verify-samples", 0, "--pairs"), "_score_batch"),
    ],
)
def test_finished_batches_are_kept(longpo, model_dir, pairs, tmp_path, monkeypatch, capsys, words, worker):
    common = (*words, pairs, "--model", model_dir, "--batch-tokens", 200, "--part-size", 4, "--output")
    with monkeypatch.context() as patch:
        undisturbed = Interrupted(patch, worker, None)
        assert longpo(*common, tmp_path / "whole")[0] == 0
    assert len(undisturbed.sizes) >= 8
    with monkeypatch.context() as patch:
        Interrupted(patch, worker, 3)
        with pytest.raises(KeyboardInterrupt):
            longpo(*common, tmp_path / "out")
    assert f"{words[0]}: stopped; 0 of 2 parts are finished and kept, and of others the fi" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        resumed = Interrupted(patch, worker, None)
        assert longpo(*common, tmp_path / "out")[0] == 0
    assert resumed.sizes == undisturbed.sizes[3:]
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_requests_of_other_settings_are_ignored(longpo, model_dir, pairs, tmp_path, monkeypatch):
    """The same requests with other settings of the model."""
    common = ("score", "--pairs", pairs, "--model", model_dir, "--batch-tokens", 200, "--verify-samples", 0)
    with monkeypatch.context() as patch:
        Interrupted(patch, "_score_batch", 3)
        with pytest.raises(KeyboardInterrupt):
            longpo(*common, "--output", tmp_path / "out")
    for output in ("out", "whole"):
        assert longpo(*common, "--rope-theta", 50, "--output", tmp_path / output)[0] == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_error_leaves_no_files(longpo, model_dir, pairs, tmp_path, monkeypatch):
    """The check of the engine fails after all batches of the first part were kept."""
    right = TransformersEngine._score_batch
    monkeypatch.setattr(
        TransformersEngine,
        "_score_batch",
        lambda *given: [[logps - 1 for logps in spans] for spans in right(*given)],
    )
    words = ("score", "--pairs", pairs, "--model", model_dir, "--batch-tokens", 200)
    status, _, err = longpo(*words, "--output", tmp_path / "scored")
    assert (status, "on average is allowed" in err) == (2, True), err
    assert not (tmp_path / "scored").exists()
