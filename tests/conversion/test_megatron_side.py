"""Stock NeMo and Megatron-Core take our checkpoints, compute what Hugging Face computes, and we take theirs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conversion_cases import CASES
from transformers import AutoModelForCausalLM

from nemo_longpo.conversion.checkpoint.reader import DistCheckpoint
from nemo_longpo.conversion.exporter import export_checkpoint


@pytest.fixture(scope="module")
def asked(nemo_checkpoints, tmp_path_factory) -> dict[str, dict[str, list[int]]]:
    """Per case, the tensors (with shapes) and objects that Megatron's model asks a checkpoint for."""
    report = tmp_path_factory.mktemp("megatron") / "report.json"
    script = Path(__file__).with_name("megatron_side.py")
    subprocess.run([sys.executable, script, report, *nemo_checkpoints.values()], check=True, timeout=300)
    return json.loads(report.read_text())


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_those_that_megatron_asks_for(case, asked, nemo_checkpoints):
    checkpoint = DistCheckpoint(nemo_checkpoints[case] / "weights")
    ours = {name: list(checkpoint.shape(name)) for name in checkpoint.tensor_names()}
    theirs = {name: shape for name, shape in asked[case].items() if "_extra_state" not in name}
    assert ours == theirs


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_hugging_face(case, asked, hf_models, nemo_checkpoints):
    model = AutoModelForCausalLM.from_pretrained(hf_models[case], torch_dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.arange(40).reshape(2, 20)).logits
    found = torch.load(nemo_checkpoints[case].parent / f"{case}.logits.pt")
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_saved_by_nemo_exports_to_the_same_files(case, asked, hf_models, nemo_checkpoints, tmp_path):
    """NeMo carries the `hf` directory along as the tokenizer's; the weights are fp32 there."""
    back = export_checkpoint(nemo_checkpoints[case].parent / f"{case}.saved", tmp_path / "back")
    assert {path.name for path in back.iterdir()} == {path.name for path in hf_models[case].iterdir()}
    for path in back.iterdir():
        assert path.read_bytes() == (hf_models[case] / path.name).read_bytes(), path.name


def test_objects_for_transformer_engine(asked, nemo_checkpoints):
    """Its modules ask for their FP8 state by these keys (v2.9: linear layers, norms; earlier: attention too)."""
    import pickle

    metadata = pickle.loads((nemo_checkpoints["mistral"] / "weights" / ".metadata").read_bytes())
    objects = {name for name in metadata.state_dict_metadata if "_extra_state" in name}
    layers = [
        f"module.decoder.layers.{module}._extra_state/shard_{layer}_2"
        for layer in range(2)
        for module in (
            "self_attention.core_attention",
            "self_attention.linear_proj",
            "self_attention.linear_qkv",
            "mlp.linear_fc1",
            "mlp.linear_fc2",
        )
    ]
    assert objects == {*layers, "module.decoder.final_layernorm._extra_state/shard_0_1"}
    local = {name for name in asked["mistral"] if "_extra_state" in name}
    assert local
    assert local <= objects
