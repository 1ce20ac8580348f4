"""What the objects in a NeMo checkpoint's `weights/` are called."""

import torch

from nemo_longpo.costs.model_shape import ModelShape

KEY_PREFIX = "module."
"""NeMo's LightningModule holds the Megatron model as `module`."""

EXTRA_STATE_OWNERS = (
    "decoder.layers.self_attention.core_attention",
    "decoder.layers.self_attention.linear_proj",
    "decoder.layers.self_attention.linear_qkv",
    "decoder.layers.mlp.linear_fc1",
    "decoder.layers.mlp.linear_fc2",
    "decoder.final_layernorm",
)
"""Modules that ask for an `_extra_state` object (FP8 scales) when a checkpoint is loaded; empty in a fresh one."""


def extra_states(model_shape: ModelShape) -> dict[str, object]:
    """Megatron's unique keys (`name/shard_{offset}_{shape}`) of the empty objects that Transformer Engine asks for.

    An empty tensor is what it stores for a module that keeps no FP8 scales.
    """
    states: dict[str, object] = {}
    for owner in EXTRA_STATE_OWNERS:
        count = model_shape.layers if ".layers." in owner else 1
        for index in range(count):
            states[f"{KEY_PREFIX}{owner}._extra_state/shard_{index}_{count}"] = torch.empty(0, dtype=torch.uint8)
    return states
