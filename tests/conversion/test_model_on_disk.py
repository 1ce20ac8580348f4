"""Training and FP8 state in a checkpoint is ignored; unknown tensors are refused."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from support import adapter_checkpoints
from support.conversion_cases import files

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.model_on_disk import open_checkpoint
from nemo_longpo.conversion.torch_dist import DistCheckpoint
from nemo_longpo.errors import InputError


def with_more(checkpoint: Path, target: Path, tensors: dict[str, torch.Tensor], objects: dict[str, object]) -> Path:
    """A copy whose weights hold more."""
    shutil.copytree(checkpoint / "context", target / "context")
    source = DistCheckpoint(checkpoint / "weights")
    shapes = {name: source.shape(name) for name in source.tensor_names()}
    tensors = {name: source.read(name, (0,) * len(shape), shape) for name, shape in shapes.items()} | tensors
    adapter_checkpoints.write(target, tensors, objects)
    return target


def test_optimizer_state_is_not_exported(hf_models, nemo_checkpoints, tmp_path):
    """fp32 masters of bf16 weights and Adam's moments of a distributed optimizer, generators' states, FP8 scales, and a
    `common.pt` that nobody opens."""
    checkpoint = nemo_checkpoints["qwen2-untied-bf16"]
    source = DistCheckpoint(checkpoint / "weights")
    state = {
        f"optimizer.state.{kind}.{name}": torch.ones(source.shape(name))
        for name in source.tensor_names()
        for kind in ("fp32_param", "exp_avg", "exp_avg_sq")
    }
    objects: dict[str, object] = {
        "optimizer/shard_0_1": {"param_groups": [{"step": 2}]},
        "rng_state/shard_0.0_1.1": {"cpu": torch.get_rng_state()},
    }
    for layer in range(2):
        scales = torch.arange(64, dtype=torch.uint8)
        objects[f"module.decoder.layers.mlp.linear_fc1._extra_state/shard_{layer}_2"] = scales
    trained = with_more(checkpoint, tmp_path / "trained", state, objects)
    (trained / "weights" / "common.pt").write_bytes(pickle.dumps(pytest.fail))
    assert files(export_checkpoint(trained, tmp_path / "back")) == files(hf_models["qwen2-untied-bf16"])


def test_unknown_tensor_is_refused(nemo_checkpoints, tmp_path):
    """It would be lost silently: a bias that the family does not have, a router."""
    bias = {"module.decoder.layers.self_attention.linear_qkv.bias": torch.ones(2, 128)}
    changed = with_more(nemo_checkpoints["mistral"], tmp_path / "changed", bias, {})
    with pytest.raises(InputError, match=r"no place in MistralForCausalLM for tensor module.*linear_qkv\.bias$"):
        open_checkpoint(changed)
