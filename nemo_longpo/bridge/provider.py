"""The model of a run as Megatron-Bridge builds models: a configuration that provides this pipeline stage's module."""

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.bridge.models.gpt_provider import GPTModelProvider

from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget
from nemo_longpo.megatron import backend, gpt, job_settings
from nemo_longpo.model_directory.rope_settings import RopeSettings, parse_scaling
from nemo_longpo.objective import Objective
from nemo_longpo.placement import LOGPROB_MEMORY_GB, PairLayout

# How Bridge splits weights that it converts, by the class of their layer: as Megatron's own output layer.
AutoMapping.register_module_type(gpt.LogprobOutputLayer.__name__, "column")


@dataclass(kw_only=True)
class LongPOProvider(GPTModelProvider):
    """Trains a decoder on preference pairs. The architecture is that of the checkpoint which a run starts from.

    Attributes:
        rotary_base: the base of the rotary embedding; None for the checkpoint's own.
        rope_scaling: a `rope_scaling` object as in Hugging Face's `config.json` (linear, yarn or llama3); None for the
            checkpoint's own. It replaces the switch of this name in Bridge, which knows Llama 3's scaling only.
        seq_length: positions of the model; None for the checkpoint's own. A larger base gives more.
        objective: which loss, and its constants: the fields of `nemo_longpo.Objective` by name, or such an object.
        pair_layout: how chosen and rejected become rows. `shared_prefix` runs the document once and both answers after
            it; `concatenated`, two full causal sequences, gives the same numbers at twice the cost.
        logprob_memory_gb: memory (10⁹ bytes) for logits; it sets how many of them are computed at once.
        logprob_chunk_size: instead, the number of rows, with the whole vocabulary.
        offload_layer_inputs: with `full` recompute, keep what it saves in host memory.
        mlp_tile_tokens: rows of a tensor-parallel group whose feed-forward part is computed at once; None for all.
        fused_kernels: on a GPU, fuse the gate of SwiGLU and the rotary embedding where they can be.
    """

    rotary_base: float | None = None
    rope_scaling: dict[str, Any] | None = None
    seq_length: int | None = None
    position_embedding_type: str = "rope"
    objective: Any = field(default_factory=lambda: asdict(Objective()))
    pair_layout: PairLayout = "shared_prefix"
    logprob_memory_gb: float = LOGPROB_MEMORY_GB
    logprob_chunk_size: int | None = None
    offload_layer_inputs: bool = False
    mlp_tile_tokens: int | None = None
    fused_kernels: bool = True

    @property
    def rope(self) -> RopeSettings:
        assert self.rotary_base is not None, "the architecture is not known yet"
        return RopeSettings(float(self.rotary_base), parse_scaling(self.rope_scaling, "model.rope_scaling"))

    @property
    def chosen_objective(self) -> Objective:
        """The objective; raises InputError for a setting that it does not have, or a value that it cannot have."""
        if isinstance(self.objective, Objective):
            return self.objective
        known = asdict(Objective())
        for name, value in self.objective.items():
            if name not in known:
                raise InputError(f"model.objective has no {name}; its settings are {', '.join(known)}.")
            if value is not None and known[name] is not None and not _same_kind(value, known[name]):
                raise InputError(
                    f"model.objective.{name} is {value!r}; give a {type(known[name]).__name__} as {known[name]!r}."
                )
        return Objective(**self.objective)

    @property
    def logit_budget(self) -> LogitBudget:
        return LogitBudget(self.logprob_memory_gb, self.logprob_chunk_size)

    def check(self) -> None:
        """Raises InputError for a setting of ours that no run can have."""
        if self.pair_layout not in get_args(PairLayout):
            raise InputError(
                f"model.pair_layout is {self.pair_layout!r}; choose one of {', '.join(get_args(PairLayout))}."
            )
        for name, kinds in (("rope_scaling", dict | None), ("objective", dict | Objective)):
            if not isinstance(getattr(self, name), kinds):
                raise InputError(f"model.{name} is {getattr(self, name)!r}; give an object, {{name: value}}.")
        parse_scaling(self.rope_scaling, "model.rope_scaling")
        _ = self.chosen_objective, self.logit_budget
        self.objective = asdict(self.chosen_objective)

    def finalize(self) -> None:
        """Let Megatron check and complete the configuration, then set what follows from the model and its machine."""
        here = backend.current_backend()
        here.prepare(self)
        super().finalize()
        if self.fused_kernels:
            here.fuse(self)
        job_settings.complete(self, self.rope)

    def provide(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> gpt.LogprobGPTModel:
        """Build this rank's module; the stages of the pipeline are those of Megatron's process groups."""
        return gpt.LogprobGPTModel(
            self,
            self.rope,
            self.logit_budget,
            backend.current_backend(),
            vp_stage,
            offload_layer_inputs=self.offload_layer_inputs,
            mlp_tile_tokens=self.mlp_tile_tokens,
        )


def _same_kind(value: Any, example: Any) -> bool:
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(example, bool) and isinstance(value, bool)
    return isinstance(value, int | float) if isinstance(example, int | float) else isinstance(value, type(example))
