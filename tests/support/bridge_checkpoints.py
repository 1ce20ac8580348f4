"""Checkpoints as Megatron-Bridge 0.6 writes them with Megatron-Core 0.19, made with PyTorch's own writer.

Tensors come from a Hugging Face directory by a mapping of its own, so that the name tables are not compared with
themselves.
"""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import checkpoint as dcp

from nemo_longpo.checkpoints import completeness

from .conversion_cases import read_config

LAYER = "decoder.layers."
LINEAR = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")

DATA = {"_target_": "nemo_longpo.bridge.pair_dataset.PairDataset", "length_window": 2, "seed": 1234}


def common_state(iteration: int) -> dict[str, Any]:
    """Adam with decay of matrices only, after as many steps of eight samples."""
    group = {"lr": 0.005, "max_lr": 0.01, "min_lr": 0.001, "betas": (0.9, 0.95), "eps": 1e-8, "lr_mult": 1.0}
    return {
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "optimizer": {
            "state": {"common_step": torch.tensor(float(iteration))},
            "param_groups": [
                group | {"default_config": True, "wd_mult": share, "weight_decay": 0.1 * share} for share in (1.0, 0.0)
            ],
        },
        "opt_param_scheduler": {"max_lr": 0.01, "min_lr": 0.001, "num_steps": 8 * iteration, "lr_decay_steps": 800},
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }


def megatron_tensors(model: Path) -> dict[str, Tensor]:
    """Every tensor of a Mistral, Qwen2, Qwen3 or Llama model under Megatron's name, those of layers stacked."""
    found = {name: tensor for file in model.glob("*.safetensors") for name, tensor in load_file(file).items()}
    config = read_config(model)
    tensors = {
        "embedding.word_embeddings.weight": found["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": found["model.norm.weight"],
    }
    if "lm_head.weight" in found:
        tensors["output_layer.weight"] = found["lm_head.weight"]
    layers = [_layer(found, number, config["num_key_value_heads"]) for number in range(config["num_hidden_layers"])]
    return tensors | {LAYER + name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}


def _layer(found: dict[str, Tensor], number: int, groups: int) -> dict[str, Tensor]:
    def part(name: str) -> Tensor:
        return found[f"model.layers.{number}.{name}"]

    def interleaved(kind: str) -> Tensor:
        """A group's queries, its key, its value, then the next group's."""
        chunked = [part(f"self_attn.{name}_proj.{kind}").chunk(groups) for name in "qkv"]
        return torch.cat([block for group in zip(*chunked, strict=True) for block in group])

    layer = {
        "self_attention.linear_qkv.layer_norm_weight": part("input_layernorm.weight"),
        "self_attention.linear_qkv.weight": interleaved("weight"),
        "self_attention.linear_proj.weight": part("self_attn.o_proj.weight"),
        "mlp.linear_fc1.layer_norm_weight": part("post_attention_layernorm.weight"),
        "mlp.linear_fc1.weight": torch.cat([part("mlp.gate_proj.weight"), part("mlp.up_proj.weight")]),
        "mlp.linear_fc2.weight": part("mlp.down_proj.weight"),
    }
    if f"model.layers.{number}.self_attn.q_proj.bias" in found:
        layer["self_attention.linear_qkv.bias"] = interleaved("bias")
    if f"model.layers.{number}.self_attn.q_norm.weight" in found:
        layer |= {f"self_attention.{side}_layernorm.weight": part(f"self_attn.{side}_norm.weight") for side in "qk"}
    return layer


def save_run(model: Path, folder: Path, iteration: int = 4, **settings: Any) -> Path:
    """A checkpoint of a training run from `model`, with an optimizer's state, in `folder`; `settings` of its model."""
    config, tensors = read_config(model), megatron_tensors(model)
    checkpoint = folder / f"iter_{iteration:07d}"
    layers = config["num_hidden_layers"]
    objects: dict[str, Any] = {
        f"{LAYER}{name}._extra_state/shard_{number}_{layers}": [None] for name in LINEAR for number in range(layers)
    }
    objects[completeness.COMMON_OBJECT] = [common_state(iteration)]
    moments = {
        f"optimizer.state.{name}.{key}": tensor for name in ("exp_avg", "exp_avg_sq") for key, tensor in tensors.items()
    }
    whole = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save({**tensors, **moments, **objects}, checkpoint_id=checkpoint, planner=whole, no_dist=True)
    (checkpoint / "metadata.json").write_text(
        json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
    )
    torch.save(
        {"step": torch.tensor(iteration), "consumed_train_samples": torch.tensor(8 * iteration)},
        checkpoint / "train_state.pt",
    )
    describe(checkpoint, _provider(config, model) | settings, dataset=dict(DATA), train={"global_batch_size": 8})
    (folder / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    return checkpoint


def describe(checkpoint: Path, provider: dict[str, Any], **more: Any) -> None:
    record = {"_target_": "megatron.bridge.training.config.ConfigContainer", "model": provider, "peft": None, **more}
    (checkpoint / "run_config.yaml").write_text(yaml.safe_dump(record))


def _provider(config: dict[str, Any], model: Path) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config
    return {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "rotary_base": rope["rope_theta"],
        "rope_scaling": False,
        "seq_length": config["max_position_embeddings"],
        "window_size": None,
        "hf_model_id": str(model),
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 1,
        "context_parallel_size": 4,
    }
