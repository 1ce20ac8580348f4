"""Checkpoints from NeMo's own importers: what follows from NeMo's records, and what is refused.

Those that stock NeMo really made are in `test_megatron_side.py`; these are ours, with the records edited.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import adapter_checkpoints
from support.conversion_cases import read_config

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.model_on_disk import open_checkpoint
from nemo_longpo.conversion.torch_dist import DistCheckpoint
from nemo_longpo.errors import InputError


def as_stock(checkpoint: Path, target: Path, **changes: Any) -> Path:
    """A copy with a tokenizer instead of the model's files, and other values in NeMo's configuration."""
    shutil.copytree(checkpoint, target)
    context = target / "context"
    (context / "hf").rename(context / "nemo_tokenizer")
    for name in ("config.json", "generation_config.json", "longpo_weights.json"):
        (context / "nemo_tokenizer" / name).unlink()
    record = context / "model.yaml"
    model = yaml.safe_load(record.read_text())
    model["tokenizer"]["pretrained_model_name"] = "nemo_tokenizer"
    model["config"] |= changes
    record.write_text(yaml.safe_dump(model))
    return target


@pytest.fixture
def mistral(nemo_checkpoints) -> Path:
    return nemo_checkpoints["mistral"]


def test_rows_without_a_token_are_left_out(mistral, hf_models, tmp_path, capsys):
    """NeMo's importer leaves the number of rows to the tokenizer, and training under tp 2 has made it even."""
    stock = as_stock(mistral, tmp_path / "stock", vocab_size=None)
    source = DistCheckpoint(mistral / "weights")
    tensors = {}
    for name in source.tensor_names():
        shape = source.shape(name)
        tensor = source.read(name, (0,) * len(shape), shape)
        if "word_embeddings" in name or "output_layer" in name:
            tensor = torch.cat([tensor, torch.full((1, shape[1]), torch.nan)])
        tensors[name] = tensor
    adapter_checkpoints.write(stock, tensors)
    back = export_checkpoint(stock, tmp_path / "back")
    assert "generation settings are unknown" in capsys.readouterr().err
    weights, original = (path / "model.safetensors" for path in (back, hf_models["mistral"]))
    assert weights.read_bytes() == original.read_bytes()
    expected = read_config(hf_models["mistral"])
    written = read_config(back)
    assert {name: written[name] for name in written if name in expected and written[name] != expected[name]} == {}


def test_a_window_and_a_linear_scaling(mistral, tmp_path):
    stock = as_stock(mistral, tmp_path / "stock", window_size=[1024, 0], seq_len_interpolation_factor=2.0)
    written = read_config(export_checkpoint(stock, tmp_path / "back"))
    assert written["sliding_window"] == 1024
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_target_": "nemo.collections.llm.gpt.model.gemma.GemmaConfig2B"},
            "describes a .*GemmaConfig2B; supported are Mis",
        ),
        ({"qk_layernorm": True}, "qk_layernorm is True; the exported model would compute with False"),
        (
            {"_target_": "nemo.collections.llm.gpt.model.qwen3.Qwen3Config"},
            "qk_layernorm is False; the exported model would compute with True",
        ),
        ({"num_moe_experts": 8}, "num_moe_experts is 8; the exported model would compute with None"),
        ({"rotary_percent": 0.5}, "rotary_percent is 0.5; the exported model would compute with 1.0"),
        ({"num_layers": None}, "no whole number for num_layers; pass --base"),
        ({"num_layers": 3}, r"has shape \[2, 64\], the model's model.yaml says \[3, 64\]"),
        ({"vocab_size": 1000}, r"has shape \[493, 64\], the model's model.yaml says \[1000, 64\]"),
    ],
)
def test_refused(changes, message, mistral, tmp_path):
    with pytest.raises(InputError, match=message):
        open_checkpoint(as_stock(mistral, tmp_path / "stock", **changes))


def test_hub_tokenizer_requires_a_model(mistral, tmp_path):
    stock = as_stock(mistral, tmp_path / "stock")
    shutil.rmtree(stock / "context" / "nemo_tokenizer")
    with pytest.raises(InputError, match=r"holds no tokenizer files \(none of tokenizer\.json, .*\); pass --base"):
        open_checkpoint(stock)
