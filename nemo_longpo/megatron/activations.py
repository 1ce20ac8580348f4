"""What is kept of a layer's activations until its backward: everything, less by recompute, or elsewhere by offload.

These settings belong to the job and not to the architecture, which comes from the checkpoint; the strategy puts them on
the model's config.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from nemo_longpo.backends import cpu
from nemo_longpo.errors import InputError

GRANULARITIES = ("full", "selective")
METHODS = ("uniform", "block")
MODULES = ("core_attn", "layernorm", "mlp")  # those of a dense decoder


@dataclass(frozen=True)
class ActivationSettings:
    """Names and meanings are those of Megatron's TransformerConfig; see `LongPOStrategy` for what users set."""

    recompute_granularity: str | None = None
    recompute_method: str = "uniform"
    recompute_num_layers: int = 1
    recompute_modules: Sequence[str] | None = None
    cpu_offloading_num_layers: int = 0

    def check(self, num_layers: int, pipeline_parallel_size: int) -> None:
        """Refuse what Megatron cannot run for a model of `num_layers`. Raises InputError."""
        setting = "trainer.strategy."
        for name, value, choices in (
            ("recompute_granularity", self.recompute_granularity, (None, *GRANULARITIES)),
            ("recompute_method", self.recompute_method, METHODS),
            *(("recompute_modules", module, MODULES) for module in self.recompute_modules or ()),
        ):
            if value not in choices:
                raise InputError(f"{setting}{name} is {value!r}; choose from {', '.join(map(str, choices))}.")
        if self.recompute_modules is not None and self.recompute_granularity != "selective":
            raise InputError(
                f"{setting}recompute_modules says what `selective` recompute repeats; "
                f"set {setting}recompute_granularity=selective, or leave the modules out."
            )
        if cpu.is_active() and "layernorm" in (self.recompute_modules or ()):
            raise InputError(
                f"{setting}recompute_modules names layernorm, which Megatron-Core recomputes by means of Transformer "
                "Engine; on the CPU leave it out."
            )
        layers = num_layers // pipeline_parallel_size
        if self.recompute_granularity == "full" and not 1 <= self.recompute_num_layers <= layers:
            raise InputError(
                f"{setting}recompute_num_layers is {self.recompute_num_layers}, but a pipeline stage has {layers} "
                f"layers; choose 1 to {layers}."
            )
        if self.cpu_offloading_num_layers:
            self._check_offloading(num_layers, pipeline_parallel_size)

    def _check_offloading(self, num_layers: int, pipeline_parallel_size: int) -> None:
        offloading = f"trainer.strategy.cpu_offloading_num_layers={self.cpu_offloading_num_layers}"
        if not 0 < self.cpu_offloading_num_layers < num_layers:
            raise InputError(f"{offloading}: the model has {num_layers} layers, choose 0 to {num_layers - 1}.")
        if self.recompute_granularity is not None:
            raise InputError(
                f"{offloading} keeps in host memory what recompute does not keep at all; "
                "set one of the two, trainer.strategy.recompute_granularity=None turns recompute off."
            )
        if pipeline_parallel_size > 1:
            raise InputError(
                f"{offloading} does not work with trainer.strategy.pipeline_model_parallel_size="
                f"{pipeline_parallel_size}; use context or tensor parallelism instead, or recompute."
            )
        if cpu.is_active():
            raise InputError(f"{offloading} needs an accelerator: here activations are in host memory already.")

    def apply_to(self, config: TransformerConfig, pipeline_parallel_size: int) -> None:
        """Check, and put the settings on a model config; they replace what it held."""
        self.check(config.num_layers, pipeline_parallel_size)
        full = self.recompute_granularity == "full"
        config.recompute_granularity = self.recompute_granularity
        config.recompute_method = self.recompute_method if full else None
        config.recompute_num_layers = self.recompute_num_layers if full else None
        if self.recompute_modules is not None:
            config.recompute_modules = list(self.recompute_modules)
        config.cpu_offloading = self.cpu_offloading_num_layers > 0
        config.cpu_offloading_num_layers = self.cpu_offloading_num_layers
