"""The commands that read a checkpoint take a run's directory, and say which of its checkpoints they took."""

import json
import shutil
from pathlib import Path

import pytest

from nemo_longpo.cli import main


@pytest.fixture
def run(nemo_checkpoints, tmp_path) -> Path:
    """Killed while the checkpoint of step 2 was removed, which its link still names; moved since."""
    folder = tmp_path / "there" / "longpo" / "checkpoints"
    shutil.copytree(nemo_checkpoints["mistral"], folder / "global_step=4")
    (folder / "global_step=2" / "weights").mkdir(parents=True)
    (folder / "global_step=2-unfinished").touch()
    (folder / "global_step=2-last").symlink_to(folder / "global_step=2")
    return (tmp_path / "there").rename(tmp_path / "run")


@pytest.mark.parametrize("place", [".", "longpo", "longpo/checkpoints"])
def test_export(run, place, hf_models, tmp_path, capsys):
    assert main(["convert", "export", "--checkpoint", str(run / place), "--output", str(tmp_path / "model")]) == 0
    taken = run / "longpo" / "checkpoints" / "global_step=4"
    assert f"export: takes {taken}, the newest complete checkpoint of {run / place}" in capsys.readouterr().err
    model = (hf_models["mistral"] / "model.safetensors").read_bytes()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == model


def test_export_of_every_checkpoint(run, hf_models, tmp_path, capsys):
    folder = run / "longpo" / "checkpoints"
    shutil.copytree(folder / "global_step=4", folder / "global_step=10")
    models = tmp_path / "models"
    words = ["convert", "export", "--checkpoint", str(run), "--output", str(models), "--every"]
    assert main(words) == 0
    assert sorted(path.name for path in models.iterdir()) == ["global_step=10", "global_step=4"]
    model = (hf_models["mistral"] / "model.safetensors").read_bytes()
    assert all((path / "model.safetensors").read_bytes() == model for path in models.iterdir())
    capsys.readouterr()
    assert main([*words, "--overwrite", "--json"]) == 0
    assert [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()] == [
        str(models / "global_step=4"),
        str(models / "global_step=10"),
    ]


def test_inspect(run, capsys):
    assert main(["convert", "inspect", "--json", str(run)]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(run / "longpo" / "checkpoints" / "global_step=4")


def test_verify(run, hf_models, capsys):
    assert main(["convert", "verify", str(run), str(hf_models["mistral"]), "--no-logits", "--json"]) == 0
    assert "global_step=4" in json.loads(capsys.readouterr().out)["a"]["path"]


def test_plan(run, capsys):
    assert main(["plan", "--model", str(run), "--length", "1024", "--gpus", "1"]) == 0


def test_broken_link_is_reported(run, tmp_path, capsys):
    link = run / "longpo" / "checkpoints" / "global_step=2-last"
    assert main(["convert", "export", "--checkpoint", str(link), "--output", str(tmp_path / "model")]) == 2
    assert "which is not there; give the run's directory instead" in capsys.readouterr().err
