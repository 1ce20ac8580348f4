"""Placement: how a job is divided over GPUs. Also defaults shared by the trainer, the recipes and `longpo plan`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

PairLayout = Literal["shared_prefix", "concatenated"]
Precision = Literal["32", "bf16-mixed"]
CpCommType = Literal["p2p", "a2a", "all_gather", "a2a+p2p"]
Recompute = Literal["none", "core_attn", "mlp", "full"]

GLOBAL_BATCH_SIZE = 8  # pairs per optimizer step
LOGPROB_MEMORY_GB = 1.0  # 10⁹ bytes of logits at once
TYPICAL_BRANCH = 4500  # tokens of an answer branch, for estimates
LONGEST_BRANCH = 8192  # tokens that the recipes keep free after the trunk


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a job is divided over GPUs, and how it saves their memory.

    `tp`, `pp`, `cp` and `dp` are the tensor-, pipeline-, context- and data-parallel sizes; their product is the number
    of GPUs. The strategy of a job knows neither this number nor dp, and leaves dp at 1. Sequence parallelism goes with
    tp > 1 if nothing else is said. Fields with long names are settings of `LongPOStrategy`, except
    `grad_reduce_in_fp32`, which is one of the precision plugin. `offload_optimizer` keeps the optimizer in host memory.
    `offload_layer_inputs` keeps the inputs of recomputed layers there, and with `mlp_tile_tokens` the feed-forward part
    of a layer is computed, and again in the backward, so many rows at a time; both are settings of `LongPOModel`.
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    gpus_per_node: int = 8
    sequence_parallel: bool | None = None
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_num_layers: int = 1
    recompute_modules: Sequence[str] | None = None
    cpu_offloading_num_layers: int = 0
    cp_comm_type: CpCommType = "p2p"
    hierarchical_context_parallel_sizes: Sequence[int] | None = None
    offload_optimizer: bool = False
    grad_reduce_in_fp32: bool = True
    offload_layer_inputs: bool = False
    mlp_tile_tokens: int | None = None

    def recomputing(self, what: Recompute, layers: int | None = None) -> "Placement":
        """Return this placement with another recompute: nothing, one part of every layer, or whole layers.

        `layers`, for "full": only the first so many of each pipeline stage, instead of all one by one.
        """
        part = None if what in ("none", "full") else (what,)
        return replace(
            self,
            recompute_granularity="selective" if part else "full" if what == "full" else None,
            recompute_modules=part,
            recompute_method="uniform" if layers is None else "block",
            recompute_num_layers=layers or 1,
        )

    @property
    def recomputed_parts(self) -> Sequence[str]:
        """Parts that are recomputed in every layer; Megatron's default is the core attention."""
        return (self.recompute_modules or ("core_attn",)) if self.recompute_granularity == "selective" else ()

    @property
    def recompute(self) -> str:
        """What the backward computes again, as `recomputing` takes it."""
        return "full" if self.recompute_granularity == "full" else ",".join(self.recomputed_parts) or "none"

    def recomputed_layers(self, layers: int) -> int:
        """Count the layers that are recomputed whole, of the `layers` of a pipeline stage."""
        if self.recompute_granularity != "full":
            return 0
        return layers if self.recompute_method == "uniform" else self.recompute_num_layers

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def devices(self) -> int:
        """GPUs that are used of each node."""
        return min(self.gpus, self.gpus_per_node)

    @property
    def num_nodes(self) -> int:
        return -(-self.gpus // self.devices)

    def settings(self) -> dict[str, Any]:
        """Return the settings of `nemo llm finetune` by path, also those that say "off": a recipe may say "on"."""
        strategy: dict[str, Any] = {
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "context_parallel_size": self.cp,
            "sequence_parallel": self.tp > 1 if self.sequence_parallel is None else self.sequence_parallel,
            "recompute_granularity": self.recompute_granularity,
            "recompute_modules": self.recompute_modules and list(self.recompute_modules),
        }
        if self.recompute_granularity == "full":
            strategy["recompute_method"] = self.recompute_method
            strategy["recompute_num_layers"] = self.recompute_num_layers
        for name in ("cpu_offloading_num_layers", "cp_comm_type", "hierarchical_context_parallel_sizes"):
            if getattr(self, name) != getattr(Placement, name):
                strategy[name] = getattr(self, name)
        optimizer: dict[str, Any] = {"optimizer_cpu_offload": self.offload_optimizer}
        if self.offload_optimizer:
            # Megatron-Core takes an offloaded optimizer only as a precision-aware one.
            optimizer |= {"optimizer_offload_fraction": 1.0, "use_precision_aware_optimizer": True}
        return {
            "trainer.num_nodes": self.num_nodes,
            "trainer.devices": self.devices,
            **{f"trainer.strategy.{name}": value for name, value in strategy.items()},
            "trainer.plugins.grad_reduce_in_fp32": self.grad_reduce_in_fp32,
            **{f"optim.config.{name}": value for name, value in optimizer.items()},
            "model.offload_layer_inputs": self.offload_layer_inputs,
            "model.mlp_tile_tokens": self.mlp_tile_tokens,
        }
