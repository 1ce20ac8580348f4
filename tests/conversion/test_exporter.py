"""The files of an export if the checkpoint does not list them, or lists impossible ones."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.conversion_cases import files
from transformers import AutoModelForCausalLM

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.errors import InputError


def test_base_directory_replaces_missing_files(hf_models, nemo_checkpoints, tmp_path):
    """A checkpoint that NeMo's own importer made has no `hf` directory."""
    stock = shutil.copytree(nemo_checkpoints["qwen2-untied-bf16"], tmp_path / "stock")
    shutil.rmtree(stock / "context" / "hf")
    source = hf_models["qwen2-untied-bf16"]
    assert files(export_checkpoint(stock, tmp_path / "back", base=source)) == files(source)


def test_base_without_weights_gets_one_file(hf_models, nemo_checkpoints, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(hf_models["qwen2-untied-bf16"], base, ignore=shutil.ignore_patterns("*.safetensors*"))
    back = export_checkpoint(nemo_checkpoints["qwen2-untied-bf16"], tmp_path / "back", base=base)
    assert {path.name for path in back.glob("*.safetensors*")} == {"model.safetensors"}
    assert {tensor.dtype for tensor in load_file(back / "model.safetensors").values()} == {torch.bfloat16}


def test_large_models_are_split(hf_models, nemo_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_longpo.conversion.exporter.DEFAULT_FILE_BYTES", 30_000)
    base = tmp_path / "base"
    shutil.copytree(hf_models["mistral"], base, ignore=shutil.ignore_patterns("*.safetensors*"))
    back = export_checkpoint(nemo_checkpoints["mistral"], tmp_path / "back", base=base)
    assert len(list(back.glob("model-*-of-*.safetensors"))) > 2
    weights = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (hf_models["mistral"], back)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "entry",
    [
        {"file": "../model.safetensors", "dtype": "F32"},
        {"file": "/model.safetensors", "dtype": "F32"},
        {"file": "config.json", "dtype": "F32"},
        {"file": "model.safetensors", "dtype": "I8"},
        {"file": ["model.safetensors"], "dtype": ["F32"]},
        {"file": "model.safetensors"},
        "model.safetensors",
    ],
)
def test_checkpoint_that_names_impossible_files(entry, nemo_checkpoints, tmp_path):
    checkpoint = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "checkpoint")
    listed = checkpoint / "context" / "hf" / "longpo_weights.json"
    listed.write_text(json.dumps(json.loads(listed.read_text()) | {"model.norm.weight": entry}))
    with pytest.raises(InputError, match=r"longpo_weights\.json has .* for model\.norm\.weight"):
        export_checkpoint(checkpoint, tmp_path / "back")
    assert not (tmp_path / "back").exists()
