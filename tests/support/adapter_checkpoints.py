"""Checkpoints of LoRA adapters with values of our choosing, in the form in which NeMo writes them."""

import json
import shutil
from pathlib import Path

import torch
import yaml
from torch import Tensor

from nemo_longpo.conversion.torch_dist import Chunk, DistCheckpoint, write_checkpoint

DIM, ALPHA = 4, 8
SETTINGS = {"_target_": "nemo.collections.llm.peft.lora.LoRA", "dim": DIM, "alpha": ALPHA, "dropout": 0.1}
LINEAR = {
    "self_attention.linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "self_attention.linear_proj": ("o_proj",),
    "mlp.linear_fc1": ("gate_proj", "up_proj"),
    "mlp.linear_fc2": ("down_proj",),
}


def read(checkpoint: Path) -> dict[str, Tensor]:
    stored = DistCheckpoint(checkpoint / "weights")
    return {
        key: stored.read(key, (0,) * len(shape), shape) for key in stored.tensor_names() if (shape := stored.shape(key))
    }


def write(checkpoint: Path, tensors: dict[str, Tensor], objects: dict[str, object] | None = None) -> None:
    """Replace the weights."""
    shutil.rmtree(checkpoint / "weights", ignore_errors=True)
    write_checkpoint(checkpoint / "weights", [whole(key, tensor) for key, tensor in tensors.items()], objects or {})


def whole(key: str, tensor: Tensor) -> Chunk:
    """A tensor in one chunk."""
    shape = tuple(tensor.shape)
    offsets = (0,) * tensor.ndim
    return Chunk(key=key, global_shape=shape, offsets=offsets, sizes=shape, dtype=tensor.dtype, load=lambda: tensor)


def steps(*shape: int, size: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random multiples of `size`, at most 16 of them: exact in bf16, their products are not."""
    return (torch.randint(-16, 17, shape) * size).to(dtype)


def make_base(source: Path, path: Path) -> Path:
    """The checkpoint with weights that are multiples of 1/256."""
    shutil.copytree(source, path)
    write(path, {key: (tensor.float() * 256).round().div(256).to(tensor.dtype) for key, tensor in read(source).items()})
    return path


def make_adapters(base: Path, path: Path, targets: tuple[str, ...] = tuple(LINEAR)) -> Path:
    """As NeMo writes them after training from `base`, with their optimizer state."""
    torch.manual_seed(0)
    tensors = {}
    for linear in targets:
        layers, outputs, inputs = DistCheckpoint(base / "weights").shape(f"module.decoder.layers.{linear}.weight")
        stem = f"module.decoder.layers.{linear}.adapter"
        tensors[f"{stem}.linear_in.weight"] = steps(layers, DIM, inputs, size=1 / 32, dtype=torch.bfloat16)
        tensors[f"{stem}.linear_out.weight"] = steps(layers, outputs, DIM, size=1 / 64, dtype=torch.bfloat16)
    optimizer = {f"optimizer.state.exp_avg.{key}": torch.ones(tensor.shape) for key, tensor in tensors.items()}
    shutil.copytree(base / "context", path / "context")
    describe(path, model_transform=SETTINGS)
    write(path, tensors | optimizer)
    (path / "weights" / "adapter_metadata.json").write_text(json.dumps({"model_ckpt_path": str(base)}))
    return path


def describe(checkpoint: Path, **fields: object) -> None:
    file = checkpoint / "context" / "model.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))
