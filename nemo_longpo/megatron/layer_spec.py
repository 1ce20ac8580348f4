"""The transformer layers of a pipeline stage, for the backend of this machine, with core attention over segments.

The GPU layer is NeMo's Transformer Engine layer with another core attention; the CPU layer is Megatron's local one with
our attention and norm. Their sharded state dicts have the same keys, so checkpoints move between CPU and GPU.
"""

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from nemo.collections.llm.gpt.model.base import GPTConfig, default_layer_spec

from nemo_longpo.backends import cpu
from nemo_longpo.errors import InputError

from .attention import CpuPairAttention
from .topology import hierarchical_cp_groups


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, with the mark by which Megatron sums its gradient over sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def block_spec(config: GPTConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules | ModuleSpec:
    """All layers of this pipeline stage, or the layer that all of them are. Collective for `cp_comm_type=a2a+p2p`."""
    return _cpu_block_spec(config, vp_stage) if cpu.is_active() else transformer_engine_layer(config)


def transformer_engine_layer(config: GPTConfig) -> ModuleSpec:
    """NeMo's Transformer Engine layer, made anew by each call, around our core attention.

    Raises:
        InputError: without Transformer Engine. Megatron's local layer has no context parallelism, no RMSNorm with
            sequence parallelism, and forms score matrices of whole sequences: long documents cannot be trained with it.
    """
    if not HAVE_TE:
        raise InputError(
            "Training on a GPU needs Transformer Engine, which is not installed here; `longpo doctor` names an image "
            "that has it. Without a GPU (CUDA_VISIBLE_DEVICES=) small models train on the CPU."
        )
    if config.use_transformer_engine_full_layer_spec:
        raise InputError(
            "The checkpoint asks for Transformer Engine's own whole layers (use_transformer_engine_full_layer_spec), "
            "which have no place for attention over a shared prefix; import it again with `longpo convert import`."
        )
    from .te_attention import TEPairAttention

    nested = config.context_parallel_size > 1 and config.cp_comm_type == "a2a+p2p"
    groups = hierarchical_cp_groups(config.hierarchical_context_parallel_sizes) if nested else None
    layer = default_layer_spec(config)
    layer.submodules.self_attention.submodules.core_attention = ModuleSpec(
        module=TEPairAttention, params={"cp_groups": groups}
    )
    return layer


def _cpu_block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    assert (config.normalization, config.qk_layernorm) == ("RMSNorm", False), "the CPU layer has plain RMSNorms"
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    layer.submodules.self_attention.submodules.core_attention = CpuPairAttention
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layers = [layer] * get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)
