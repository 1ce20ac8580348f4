"""An exported model is the next iteration's model: it writes the data, scores it, and is imported again."""

import json
import shutil
from pathlib import Path

import pytest
from support.small_corpus import make_document

from nemo_longpo.cli import main
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint


@pytest.fixture(scope="module")
def exported(hf_models, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("iteration")
    nemo = import_checkpoint(hf_models["mistral"], root / "nemo", rope_theta=1e5, max_length=8192)
    return export_checkpoint(nemo, root / "model")


def test_reimport_with_a_longer_context(exported, hf_models, tmp_path):
    nemo = import_checkpoint(exported, tmp_path / "nemo", rope_theta=1e7, max_length=32768)
    back = export_checkpoint(nemo, tmp_path / "back")
    first, last = (json.loads((path / "config.json").read_text()) for path in (hf_models["mistral"], back))
    assert last == first | {"rope_theta": 1e7, "max_position_embeddings": 32768}
    assert (back / "model.safetensors").read_bytes() == (hf_models["mistral"] / "model.safetensors").read_bytes()


def test_export_notes_transformers_5_settings(exported, hf_models, tmp_path, capfd):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    (model / "config.json").write_text(json.dumps(config))
    capfd.readouterr()
    export_checkpoint(import_checkpoint(model, tmp_path / "nemo"), tmp_path / "back")
    assert "transformers 4 overlooks them" in capfd.readouterr().err
    export_checkpoint(import_checkpoint(exported, tmp_path / "four"), tmp_path / "back-four")
    assert "transformers 4" not in capfd.readouterr().err


def test_it_writes_and_scores_the_data(exported, tmp_path):
    (tmp_path / "corpus").mkdir()
    for index in range(2):
        (tmp_path / "corpus" / f"{index}.txt").write_text(make_document(index, 5), encoding="utf-8")

    def stage(name: str, given: str, before: str, *words: object) -> None:
        command = ["data", name, given, tmp_path / before, "--output", tmp_path / name, "--model", exported, *words]
        assert main([str(word) for word in command]) == 0

    generate = ("--engine", "transformers", "--temperature", 1, "--max-new-tokens", 12)
    stage("chunk", "--input", "corpus", "--chunk-tokens", 96)
    stage("instruct", "--input", "chunk", *generate, "--pool-size", 1, "--no-check-requests")
    stage("respond", "--input", "instruct", *generate)
    stage("score", "--pairs", "respond", "--engine", "transformers")
    stage("pack", "--pairs", "score")
    manifest = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    assert manifest["counts"]["turns"] == 6
    assert manifest["reference"]["rope"] == {"rope_theta": 1e5, "max_position_embeddings": 8192}
