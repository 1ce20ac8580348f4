"""A conversion replaces nothing but a model, and only on request."""

import json
from pathlib import Path

import pytest
from support.damage import assert_refused

from nemo_longpo.cli import main
from nemo_longpo.conversion.outputs import new_model, require_free
from nemo_longpo.errors import InputError


@pytest.fixture
def output(tmp_path) -> Path:
    """Holds an old model."""
    model = tmp_path / "place" / "output"
    model.mkdir(parents=True)
    (model / "config.json").write_text("old")
    return model


def test_existing_output_needs_overwrite(output):
    with pytest.raises(InputError, match="exists already; pass --overwrite to replace it"):
        require_free(output, overwrite=False)
    with pytest.raises(InputError, match="exists already"), new_model(output, overwrite=False, size=10):
        pass
    assert (output / "config.json").read_text() == "old"
    with new_model(output, overwrite=True, size=10) as new:
        (new / "config.json").write_text("new")
    assert (output / "config.json").read_text() == "new"


def test_only_models_are_replaced(output):
    (output / "config.json").rename(output / "thesis.tex")
    with pytest.raises(InputError, match="is no model, and --overwrite replaces nothing else"):
        require_free(output, overwrite=True)
    (output / "thesis.tex").unlink()
    require_free(output, overwrite=True)


def test_the_command_replaces_on_request(hf_models, nemo_checkpoints, output, capsys):
    command = ["export", "--checkpoint", str(nemo_checkpoints["mistral"]), "--output", str(output)]
    assert_refused(command, "exists already; pass --overwrite", output.parent, capsys)
    assert main(["convert", *command, "--overwrite", "--workers", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(output)}
    assert {path.name for path in output.iterdir()} == {path.name for path in hf_models["mistral"].iterdir()}
