"""Tasks of NeMo-Run, run by its own executor on this machine."""

import ast
import sys
from pathlib import Path

import pytest

from nemo_longpo.launching import executors

pytestmark = pytest.mark.slow

SHOW_WORDS = "import os, sys\nopen(os.environ['RANK'], 'w').write(repr(sys.argv[1:]))\n"


def test_torchrun_starts_bridge_on_every_rank(tmp_path, monkeypatch):
    """Another module takes the place of the one that trains: it writes down what each rank is given."""
    nemo_run = executors.import_nemo_run()
    (tmp_path / "nemo_longpo_words.py").write_text(SHOW_WORDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.prefix, "bin")), prepend=":")
    overrides = ["optimizer.lr=1e-6", "dataset.paths=[a,b]"]
    task = executors.bridge_training("tiny_longpo", overrides, "runs/one")
    assert (task.path, task.m) == ("nemo_longpo.bridge.train", True)
    task.path, task.env = "nemo_longpo_words", {"PYTHONPATH": str(tmp_path)}
    described = {"type": "LocalExecutor", "launcher": "torchrun", "ntasks_per_node": 2}
    with nemo_run.Experiment("words", base_dir=str(tmp_path / "experiments"), clean_mode=True) as experiment:
        experiment.add(task, executor=executors.make_executor(described, "here"), name="train")
        experiment.run(detach=False)
    words = ["--recipe", "tiny_longpo", "--log-dir", "runs/one", *overrides]
    for rank in range(2):
        said = ast.literal_eval((tmp_path / str(rank)).read_text())
        assert [word.strip("'") for word in said] == words
