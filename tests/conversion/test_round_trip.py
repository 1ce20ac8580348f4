"""Import, then export: everything comes back, except what was asked to change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import adapter_checkpoints
from support.conversion_cases import CASES, SHAPES, config_changes, edit_config, files, read_config
from support.tiny_models import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.torch_dist import DistCheckpoint


@pytest.mark.parametrize("case", CASES)
def test_every_file_round_trips(case, hf_models, nemo_checkpoints, tmp_path):
    back = export_checkpoint(nemo_checkpoints[case], tmp_path / "back")
    assert files(back) == files(hf_models[case])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_round_trips(shape, tmp_path):
    source = save_tiny(tmp_path / "source", **SHAPES[shape])
    back = export_checkpoint(import_checkpoint(source, tmp_path / "nemo"), tmp_path / "back")
    assert files(back) == files(source)


REWRITTEN: dict[str, Callable[[dict], str]] = {
    "other layout": lambda config: json.dumps(dict(reversed(config.items())), indent="\t") + "\r\n\r\n",
    "other fields": lambda config: json.dumps(config | {"sliding_window": None, "ünï": {"a": [None]}, "auto_map": {}}),
    "null": lambda config: json.dumps(config | {"head_dim": None, "rope_scaling": None, "quantization_config": None}),
    "no head size": lambda config: json.dumps({name: value for name, value in config.items() if name != "head_dim"}),
    "transformers 5": lambda config: json.dumps(
        {name: value for name, value in config.items() if name not in ("rope_theta", "rope_scaling")}
        | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "truncate": False}}
    ),
    "old type": lambda config: json.dumps(config | {"rope_scaling": {"type": "linear", "factor": 2}}),
    "window over all positions": lambda config: json.dumps(config | {"sliding_window": 4096}),
}


@pytest.mark.parametrize("case", ["mistral", pytest.param("qwen2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", REWRITTEN)
def test_config_round_trips(name, case, hf_models, tmp_path):
    source = shutil.copytree(hf_models[case], tmp_path / "source")
    (source / "config.json").write_bytes(REWRITTEN[name](read_config(source)).encode())
    back = export_checkpoint(import_checkpoint(source, tmp_path / "nemo"), tmp_path / "back")
    assert files(back) == files(source)


def test_rope_base_of_training_is_exported(hf_models, nemo_checkpoints, tmp_path):
    """A recipe may set the rotary base instead of the import; the checkpoint's own configuration counts."""
    trained = shutil.copytree(nemo_checkpoints["qwen2"], tmp_path / "trained")
    description = trained / "context" / "model.yaml"
    description.write_text(description.read_text().replace("rotary_base: 10000.0", "rotary_base: 5000000.0"))
    back = export_checkpoint(trained, tmp_path / "back", max_length=8192)
    assert config_changes(hf_models["qwen2"], back) == {
        "rope_theta": (10000.0, 5e6),
        "max_position_embeddings": (4096, 8192),
    }


def test_rope_scaling_of_training_is_exported(hf_models, nemo_checkpoints, tmp_path):
    """Training records the scaling it used; it wins over the config.json that the checkpoint carries."""

    def exported(name: str, record: object) -> dict[str, tuple]:
        trained = shutil.copytree(nemo_checkpoints["qwen2"], tmp_path / name)
        description = trained / "context" / "model.yaml"
        description.write_text(f"{description.read_text()}rope_scaling: {json.dumps(record)}\n")
        return config_changes(hf_models["qwen2"], export_checkpoint(trained, tmp_path / f"{name}-back"))

    assert exported("plain", None) == {}
    linear = {"rope_type": "linear", "factor": 2.0}
    assert exported("linear", linear) == {"rope_scaling": (None, linear)}


def test_file_dtype_beats_config_dtype(hf_models, tmp_path):
    source = shutil.copytree(hf_models["mistral"], tmp_path / "hf")
    edit_config(source, dtype="bfloat16")
    back = export_checkpoint(import_checkpoint(source, tmp_path / "nemo"), tmp_path / "back")
    assert files(back) == files(source)


def test_exported_model_and_tokenizer_load(hf_models, nemo_checkpoints, tmp_path):
    back = export_checkpoint(nemo_checkpoints["qwen2"], tmp_path / "back")
    ids = torch.tensor([[5, 6, 7]])
    outputs = [AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (hf_models["qwen2"], back)]
    assert torch.equal(*outputs)
    tokenizer = AutoTokenizer.from_pretrained(back)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(hf_models["qwen2"]).chat_template


def test_tied_model_saved_with_both_names(hf_models, tmp_path):
    source = shutil.copytree(hf_models["qwen2"], tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    back = export_checkpoint(import_checkpoint(source, tmp_path / "nemo"), tmp_path / "back")
    exported = load_file(back / "model.safetensors")
    del tensors["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert exported.keys() == tensors.keys()
    assert all(torch.equal(exported[name], tensors[name]) for name in tensors)


def rewrite_weights(checkpoint: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Write the checkpoint's weights again, each tensor through `change(key, tensor)`, and optimizer state beside."""
    source = DistCheckpoint(checkpoint / "weights")
    tensors = {}
    for key in source.tensor_names():
        shape = source.shape(key)
        tensors[key] = change(key, source.read(key, (0,) * len(shape), shape))
        tensors["optimizer.state.exp_avg." + key] = torch.ones(shape)
    adapter_checkpoints.write(checkpoint, tensors)


def test_padding_and_optimizer_are_not_exported(hf_models, nemo_checkpoints, tmp_path):
    """What training adds: rows padded for tensor parallelism, fp32 weights, optimizer state."""
    trained = shutil.copytree(nemo_checkpoints["qwen2-untied-bf16"], tmp_path / "trained")

    def train(key: str, tensor: torch.Tensor) -> torch.Tensor:
        rows = 3 if "word_embeddings" in key or "output_layer" in key else 0
        padding = torch.full((rows, *tensor.shape[1:]), torch.nan)
        return torch.cat([tensor.float(), padding])

    rewrite_weights(trained, train)
    back = export_checkpoint(trained, tmp_path / "back")
    assert files(back) == files(hf_models["qwen2-untied-bf16"])
