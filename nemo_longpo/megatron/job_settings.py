"""Put the settings of a job on a Megatron config; the architecture in it is the checkpoint's."""

from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import RopeSettings
from nemo_longpo.parallel.cp_comm import AttentionShape, check_cp_comm
from nemo_longpo.placement import PairLayout, Placement

CHOICES = {
    "recompute_granularity": (None, "full", "selective"),
    "recompute_method": ("uniform", "block"),
    "recompute_modules": ("core_attn", "layernorm", "mlp"),  # those of a dense decoder
}
SETTING = "trainer.strategy."
ONE_PROCESS_IN_FP32: dict[str, Any] = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "context_parallel_size": 1,
    "sequence_parallel": False,
    "bf16": False,
    "fp16": False,
    "params_dtype": torch.float32,
    "pipeline_dtype": torch.float32,
    "perform_initialization": False,  # every weight is loaded
    "recompute_granularity": None,
}


def put_on(config: TransformerConfig, placement: Placement) -> None:
    """Set the fields that belong to the job; they replace the config's. Call `check` before.

    NeMo's strategy then adds parallel sizes and number types and lets Megatron check the config; after that,
    `complete` sets the rest.
    """
    full = placement.recompute_granularity == "full"
    config.recompute_granularity = placement.recompute_granularity
    config.recompute_method = placement.recompute_method if full else None
    config.recompute_num_layers = placement.recompute_num_layers if full else None
    if placement.recompute_modules is not None:
        config.recompute_modules = list(placement.recompute_modules)
    config.cpu_offloading = placement.cpu_offloading_num_layers > 0
    config.cpu_offloading_num_layers = placement.cpu_offloading_num_layers
    sizes = placement.hierarchical_context_parallel_sizes
    config.cp_comm_type = placement.cp_comm_type
    config.hierarchical_context_parallel_sizes = None if sizes is None else list(sizes)


def check(placement: Placement, config: TransformerConfig, pair_layout: PairLayout) -> None:
    """Check the settings. Raises InputError, naming the setting and what to choose, if Megatron, Transformer Engine or
    our attention cannot do what one asks for on any machine.

    The CPU has one attention for every `cp_comm_type`, but checks them too, so that a run tried there starts on GPUs.
    """
    _check_sizes(placement, config)
    _check_recompute(placement, config)
    _check_activations(placement)
    if placement.cpu_offloading_num_layers:
        _check_offloading(placement, config)
    shape = attention_shape(config)
    check_cp_comm(
        shape,
        placement.cp_comm_type,
        placement.cp,
        placement.tp,
        placement.hierarchical_context_parallel_sizes,
    )
    if shape.slides and pair_layout == "shared_prefix":
        raise window_refused(config)
    if config.attention_dropout:
        raise InputError(
            f"The checkpoint has attention_dropout={config.attention_dropout}; LongPO's attention has no dropout, "
            "import it again with `longpo convert import`."
        )
    if config.calculate_per_token_loss:
        raise InputError(
            "The model's config has calculate_per_token_loss=True, with which Megatron sums gradients over "
            "data-parallel and context-parallel ranks and divides by a number of tokens; LongPO's loss is a mean over "
            "pairs and returns none. Set it to False."
        )


def _check_sizes(placement: Placement, config: TransformerConfig) -> None:
    for name, count, size in (
        ("attention heads", config.num_attention_heads, placement.tp),
        ("key/value heads", config.num_query_groups, placement.tp),
        ("feed-forward columns", config.ffn_hidden_size, placement.tp),
        ("layers", config.num_layers, placement.pp),
    ):
        if count % size:
            setting = f"{'pipeline' if name == 'layers' else 'tensor'}_model_parallel_size"
            raise InputError(
                f"The model has {count} {name}, which {SETTING}{setting}={size} does not divide; "
                f"choose a divisor of {count}."
            )
    if placement.sequence_parallel and placement.tp == 1:
        raise InputError(
            f"{SETTING}sequence_parallel splits what tensor parallelism leaves whole, and "
            f"{SETTING}tensor_model_parallel_size is 1; set {SETTING}sequence_parallel=False."
        )


def _check_recompute(placement: Placement, config: TransformerConfig) -> None:
    for name, choices in CHOICES.items():
        chosen = getattr(placement, name)
        for value in (chosen or ()) if name == "recompute_modules" else (chosen,):
            if value not in choices:
                raise InputError(f"{SETTING}{name} is {value!r}; choose from {', '.join(map(str, choices))}.")
    if placement.recompute_modules is not None and placement.recompute_granularity != "selective":
        raise InputError(
            f"{SETTING}recompute_modules says what `selective` recompute repeats; "
            f"set {SETTING}recompute_granularity=selective, or leave the modules out."
        )
    layers = config.num_layers // placement.pp
    if placement.recompute_granularity == "full" and not 1 <= placement.recompute_num_layers <= layers:
        raise InputError(
            f"{SETTING}recompute_num_layers is {placement.recompute_num_layers}, but a pipeline stage has {layers} "
            f"layers; choose 1 to {layers}."
        )


def _check_activations(placement: Placement) -> None:
    if placement.offload_layer_inputs and placement.recompute_granularity != "full":
        raise InputError(
            "model.offload_layer_inputs=True moves what the recompute of whole layers saves to host memory, and "
            f"{SETTING}recompute_granularity is {placement.recompute_granularity}; set it to full, or set "
            "model.offload_layer_inputs=False."
        )
    tile = placement.mlp_tile_tokens
    if tile is not None and tile < placement.tp:
        raise InputError(
            f"model.mlp_tile_tokens is {tile}; give at least {placement.tp}, one for each tensor-parallel rank (16384 "
            "keep matrix units busy), or null for no tiles."
        )


def _check_offloading(placement: Placement, config: TransformerConfig) -> None:
    offloading = f"{SETTING}cpu_offloading_num_layers={placement.cpu_offloading_num_layers}"
    if not 0 < placement.cpu_offloading_num_layers < config.num_layers:
        raise InputError(
            f"{offloading}: the model has {config.num_layers} layers, choose 0 to {config.num_layers - 1}."
        )
    if placement.recompute_granularity is not None:
        raise InputError(
            f"{offloading} keeps activations in host memory, and recompute does not keep them at all; "
            f"set one of the two, {SETTING}recompute_granularity=None turns recompute off."
        )
    if placement.pp > 1:
        raise InputError(
            f"{offloading} does not work with {SETTING}pipeline_model_parallel_size="
            f"{placement.pp}; use context or tensor parallelism instead, or recompute."
        )


def check_optimizer(config: OptimizerConfig) -> None:
    """Check the optimizer's offloading. Raises InputError if it would fail or move nothing to host memory."""
    if not config.optimizer_cpu_offload:
        return
    offload = "optim.config.optimizer_cpu_offload=True"
    if not config.use_precision_aware_optimizer:
        raise InputError(f"{offload} works through optim.config.use_precision_aware_optimizer=True; set that too.")
    if config.optimizer_offload_fraction == 0:
        raise InputError(f"{offload} moves nothing with optim.config.optimizer_offload_fraction=0; set up to 1.0.")


def put_one_process_on(config: TransformerConfig) -> None:
    """Set what one process outside of a job needs to compute the model in fp32; `complete` sets the rest."""
    for name, value in ONE_PROCESS_IN_FP32.items():
        setattr(config, name, value)


def complete(config: TransformerConfig, rope: RopeSettings) -> None:
    """Set the fields that follow from the model and its parallel sizes."""
    # Pairs differ in length, and so do the activations that pipeline stages exchange. Megatron's check of a config
    # would refuse this setting, because of experts.
    config.variable_seq_lengths = config.pipeline_model_parallel_size > 1
    # As a scale of the scores, YaRN's factor of queries and keys costs nothing and allows fused rotary kernels.
    if rope.attention_factor != 1:
        config.softmax_scale = rope.softmax_scale(config.kv_channels)


def attention_shape(config: TransformerConfig) -> AttentionShape:
    window = None if config.window_size is None else (int(config.window_size[0]), int(config.window_size[1]))
    return AttentionShape(config.num_attention_heads, config.num_query_groups, config.kv_channels, window)


def window_refused(config: TransformerConfig) -> InputError:
    return InputError(
        f"The model attends within a sliding window (window_size={list(config.window_size)}), which neither "
        "branches behind a shared prefix nor the CPU backend do; import the checkpoint with --full-attention."
    )
