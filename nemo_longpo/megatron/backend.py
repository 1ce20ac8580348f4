"""The backend of this process: whether it trains on GPUs or on the CPU, and what differs between the two.

The GPU layer is Megatron's Transformer Engine layer with another core attention; the CPU layer is its local one with
our attention and norm. Their sharded state dicts have the same keys, so checkpoints move between CPU and GPU.
`nemo_longpo.backends.cpu` replaces the CUDA calls of Megatron and of the trainer around it.
"""

from typing import Any

from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch.nn.functional import silu

from nemo_longpo import activations
from nemo_longpo.backends import cpu
from nemo_longpo.errors import InputError
from nemo_longpo.placement import Placement

from . import attention, topology
from .job_settings import SETTING, attention_shape, window_refused


class Backend:
    """Training on GPUs; `CpuBackend` overrides what differs without them."""

    is_accelerated = True
    optimizer_settings: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)
    """Fields of Megatron's OptimizerConfig."""

    def prepare(self, config: Any) -> Any:
        """Switch off, in place, what this machine lacks, in a model config or its recipe; return it."""
        return config

    def fuse(self, config: Any) -> None:
        """Switch on, in place, the fused kernels that this machine has for a model config.

        Configs of NeMo leave both off for Mistral and Qwen2.5. The gate of SwiGLU and its product become one kernel,
        which torch.compile makes of Megatron's formula. The rotary embedding becomes one of Transformer Engine; it
        takes the angles of any positions, fp32 [R, 1, 1, D], and rows of any strides. What Megatron refuses to fuse
        (TransformerConfig.__post_init__), or would fuse into another function, stays as it is.
        """
        gate = config.activation_func, config.gated_linear_unit, config.glu_linear_offset
        if gate == (silu, True, 0.0) and not config.use_te_activation_func:
            config.bias_activation_fusion = config.activation_func_clamp_value is None
        if HAVE_TE and not (config.rotary_interleaved or config.multi_latent_attention):
            config.apply_rope_fusion = True

    def refuse(self, placement: Placement, config: TransformerConfig, optimizer: OptimizerConfig | None) -> None:
        """Check the settings. Raises InputError if one of them asks for what this machine lacks."""

    def copies(self) -> activations.CopyStream | activations.NoStream:
        """Return what copies tensors to host memory and back, beside the computation."""
        return activations.CopyStream()

    def layer_spec(
        self, config: TransformerConfig, vp_stage: int | None = None
    ) -> ModuleSpec | TransformerBlockSubmodules:
        """Return the spec of one layer, or of all layers of a pipeline stage. On GPUs: a new copy of Megatron's
        Transformer Engine layer with our core attention. All ranks must call it for `cp_comm_type=a2a+p2p`.

        Raises InputError if Transformer Engine is missing: Megatron's local layer has no context parallelism, no
        RMSNorm with sequence parallelism, and its score matrices of whole sequences are too large for long documents.
        """
        if not HAVE_TE:
            raise InputError(
                "Training on a GPU needs Transformer Engine, which is not installed here; `longpo doctor` names an "
                "image that has it. Without a GPU (CUDA_VISIBLE_DEVICES=) small models train on the CPU."
            )
        if getattr(config, "use_transformer_engine_full_layer_spec", False):
            raise InputError(
                "The checkpoint asks for Transformer Engine's own whole layers "
                "(use_transformer_engine_full_layer_spec), which cannot hold attention over a shared prefix; "
                "import it again with `longpo convert import`."
            )
        from .te_attention import TEPairAttention

        nested = config.context_parallel_size > 1 and config.cp_comm_type == "a2a+p2p"
        groups = topology.hierarchical_cp_groups(config.hierarchical_context_parallel_sizes) if nested else None
        layer = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(
            qk_layernorm=config.qk_layernorm,
            use_te_op_fuser=bool(getattr(config, "use_transformer_engine_op_fuser", None)),
        )
        layer.submodules.self_attention.submodules.core_attention = ModuleSpec(
            module=TEPairAttention, params={"cp_groups": groups}
        )
        return layer


class CpuBackend(Backend):
    """Training without an accelerator. The optimizer is not distributed: Megatron's cannot be resumed with torch's
    Adam, which replaces the fused ones (megatron/core/optimizer/distrib_optimizer.py:637 asserts a step count that a
    fresh Adam does not have).
    """

    is_accelerated = False
    optimizer_settings: dict[str, Any] = {"use_distributed_optimizer": False}  # noqa: RUF012

    def prepare(self, config: Any) -> Any:
        return cpu.without_cuda_kernels(config)

    def fuse(self, config: Any) -> None:
        """There are none for the CPU."""

    def refuse(self, placement: Placement, config: TransformerConfig, optimizer: OptimizerConfig | None) -> None:
        if "layernorm" in (placement.recompute_modules or ()):
            raise InputError(
                f"{SETTING}recompute_modules names layernorm, which Megatron-Core can only recompute with Transformer "
                "Engine; on the CPU leave it out."
            )
        if placement.cpu_offloading_num_layers:
            raise InputError(
                f"{SETTING}cpu_offloading_num_layers={placement.cpu_offloading_num_layers} needs an accelerator: here "
                "activations are in host memory already."
            )
        if attention_shape(config).slides:
            raise window_refused(config)
        if optimizer is not None and optimizer.optimizer_cpu_offload:
            raise InputError(
                "optim.config.optimizer_cpu_offload=True needs an accelerator: here the optimizer is in host memory "
                "already."
            )

    def copies(self) -> activations.NoStream:
        return activations.NoStream()

    def layer_spec(self, config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
        assert config.normalization == "RMSNorm", "the CPU layer has RMSNorms"
        layer = gpt_layer_specs.get_gpt_layer_local_spec(
            normalization=config.normalization, qk_layernorm=config.qk_layernorm
        )
        layer.submodules.self_attention.submodules.core_attention = attention.CpuPairAttention
        if config.qk_layernorm:
            layer.submodules.self_attention.submodules.q_layernorm = attention.RMSNorm
            layer.submodules.self_attention.submodules.k_layernorm = attention.RMSNorm
        layer.submodules.input_layernorm = attention.RMSNorm
        layer.submodules.pre_mlp_layernorm = attention.RMSNorm
        layers = [layer] * get_num_layers_to_build(config, vp_stage)
        return TransformerBlockSubmodules(layer_specs=layers, layer_norm=attention.RMSNorm)


def start_backend(trainer: cpu.Trainer | None = None) -> Backend:
    """Prepare training on the CPU if there is no accelerator; call it before anything touches a device.

    `trainer` is what trains in this process, NeMo or Megatron-Bridge; by default, what is installed.
    """
    cpu.activate(trainer)
    return current_backend()


def current_backend() -> Backend:
    return CpuBackend() if cpu.is_active() else Backend()
