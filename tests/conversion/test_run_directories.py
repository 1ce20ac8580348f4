"""The commands that read a checkpoint take a run's directory, and say which of its checkpoints they took."""

import json
import shutil
from pathlib import Path

import pytest

from nemo_longpo import live_status
from nemo_longpo.cli import main
from nemo_longpo.report import follow


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


@pytest.fixture
def said(monkeypatch, tmp_path) -> list[str]:
    """What `longpo report --follow` would have shown of `tmp_path/models` whenever a status changed."""
    shown: list[str] = []
    update = live_status.StatusFile.update

    def look(self, **changes):
        update(self, **changes | {"now": True})
        if work := follow.look(tmp_path / "models"):
            shown.append(" | ".join(follow.drawn(work, work.newest.updated)[2 if work.status.total else 1 :]))

    monkeypatch.setattr(live_status.StatusFile, "update", look)
    return shown


def parts(said: list[str]) -> list[str]:
    return list(dict.fromkeys(line.split(" | ")[0].strip() for line in said if line))


def test_status_of_a_conversion_lies_beside_what_appears_whole(run, hf_models, tmp_path, said):
    folder, models = run / "longpo" / "checkpoints", str(tmp_path / "models")
    assert main(["convert", "export", "--checkpoint", str(folder), "--output", models]) == 0
    assert parts(said) == ["hold the checkpoint to its record", "write the weights", "wait for the disk"]
    said.clear()
    assert main(["convert", "import", "--model", str(hf_models["mistral"]), "--output", models, "--overwrite"]) == 0
    assert parts(said) == [
        "describe the model to its trainer",
        "write the weights",
        "name the model by its weights",
        "record the hashes of all files",
        "wait for the disk",
    ]
    assert not list(tmp_path.glob("*/*status*"))
    assert not list(tmp_path.glob(".*"))


def test_status_of_a_conversion_counts_its_megabytes(run, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(live_status.StatusFile, "_write", lambda self: counted.append(self._status))
    monkeypatch.setattr(live_status, "_SECONDS", 0)
    assert main(["convert", "export", "--checkpoint", str(run), "--output", str(tmp_path / "model")]) == 0
    weights = [status for status in counted if status.doing == "write the weights"]
    done = [status.done for status in weights]
    assert done == sorted(set(done))
    assert (
        done[-1]
        == weights[-1].total
        == pytest.approx((tmp_path / "model" / "model.safetensors").stat().st_size / 1e6, rel=0.2)
    )
    assert weights[-1].line().startswith(f"write the weights, {round(done[-1], 1):.3f} of ")


def test_status_of_several_exports_leads_to_the_one_at_work(run, tmp_path, said):
    folder = run / "longpo" / "checkpoints"
    shutil.copytree(folder / "global_step=4", folder / "global_step=10")
    assert main(["convert", "export", "--checkpoint", str(run), "--output", str(tmp_path / "models"), "--every"]) == 0
    assert parts(said) == ["export global_step=4", "export global_step=10"]
    assert any("global_step=10: at work for" in line and "write the weights" in line for line in said)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["global_step=10", "global_step=4"]


def test_all_places_are_looked_at_before_the_first_export(run, tmp_path, capsys):
    folder, taken = run / "longpo" / "checkpoints", tmp_path / "models" / "global_step=10"
    shutil.copytree(folder / "global_step=4", folder / "global_step=10")
    taken.mkdir(parents=True)
    assert main(["convert", "export", "--checkpoint", str(run), "--output", str(taken.parent), "--every"]) == 2
    assert f"{taken} exists already; pass --overwrite to replace it" in capsys.readouterr().err
    assert list(taken.parent.iterdir()) == [taken]


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
