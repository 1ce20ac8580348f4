"""The NeMo model: a stock architecture trained with the LongPO objective."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional, get_args

import torch
from nemo.collections import llm
from nemo.collections.common.tokenizers import TokenizerSpec
from nemo.collections.llm.gpt.model.base import GPTConfig
from nemo.lightning import OptimizerModule
from torch import Tensor

from nemo_longpo.costs.flops import training_flops
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget
from nemo_longpo.model_directory.rope_settings import RopeSettings, parse_scaling
from nemo_longpo.objective import Objective
from nemo_longpo.parallel.layout import PairRows
from nemo_longpo.placement import LOGPROB_MEMORY_GB, PairLayout

from .backend import current_backend
from .data import next_rows
from .gpt import LogprobGPTModel
from .loss import LongPOLossReduction


@dataclass(frozen=True)
class ArchitectureFromCheckpoint:
    """Stands in for `LongPOModel.config` until `LongPOResume` has read the architecture from the checkpoint.

    `llm.finetune` checks these fields before it looks at any checkpoint, so they hold values that pass.
    """

    num_layers: int = 1
    hidden_size: int = 1
    ffn_hidden_size: int = 1
    num_attention_heads: int = 1
    seq_length: int = 2**20


class LongPOModel(llm.GPTModel):
    """Trains a decoder on preference pairs.

    Args:
        config: the architecture, NeMo's `MistralConfig`, `Qwen2Config` or `LlamaConfig`; by default the checkpoint's.
        rope_scaling: a `rope_scaling` object as in Hugging Face's `config.json` (linear, yarn or llama3), on top of the
            config's `rotary_base`; by default the checkpoint's own.
        objective: which loss, and its constants.
        pair_layout: how chosen and rejected become rows. `shared_prefix` runs the document once and both answers behind
            it; `concatenated`, two full causal sequences, gives the same numbers at twice the cost.
        logprob_memory_gb: memory (10⁹ bytes) for the logits that are there at once, which sets how many rows those are.
        logprob_chunk_size: the number of rows itself, instead.
    """

    def __init__(
        self,
        config: GPTConfig | None = None,
        rope_scaling: Optional[dict[str, Any]] = None,  # noqa: UP045 (NeMo-Run's parser)
        objective: Objective | None = None,
        pair_layout: PairLayout = "shared_prefix",
        logprob_memory_gb: float = LOGPROB_MEMORY_GB,
        logprob_chunk_size: Optional[int] = None,  # noqa: UP045 (NeMo-Run's parser)
        optim: OptimizerModule | None = None,
        tokenizer: TokenizerSpec | None = None,
        model_transform: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
    ):
        if pair_layout not in get_args(PairLayout):
            raise InputError(f"model.pair_layout is {pair_layout!r}; choose one of {', '.join(get_args(PairLayout))}.")
        logit_budget = LogitBudget(logprob_memory_gb, logprob_chunk_size)
        parse_scaling(rope_scaling, "model.rope_scaling")
        super().__init__(
            config or ArchitectureFromCheckpoint(), optim=optim, tokenizer=tokenizer, model_transform=model_transform
        )
        self.rope_scaling = rope_scaling
        self.objective = objective or Objective()
        self.pair_layout = pair_layout
        self.logit_budget = logit_budget

    def adopt_architecture(self, config: GPTConfig, rope_scaling: dict[str, Any] | None) -> None:
        """Take over a checkpoint's architecture, also in what NeMo writes into our own checkpoints."""
        self.config = config
        self.__io__.config = config.__io__
        if self.rope_scaling is None:
            self.rope_scaling = self.__io__.rope_scaling = rope_scaling

    @property
    def rope(self) -> RopeSettings:
        return RopeSettings(self.config.rotary_base, parse_scaling(self.rope_scaling, "model.rope_scaling"))

    def configure_model(self, vp_stage: int | None = None) -> None:
        if not hasattr(self, "module"):
            self.module = LogprobGPTModel(self.config, self.rope, self.logit_budget, current_backend(), vp_stage)

    def data_step(self, dataloader_iter: Iterator) -> PairRows:
        """The next pair's rows on this rank."""
        return next_rows(dataloader_iter).to_device(torch.cuda.current_device())

    def forward_step(self, batch: PairRows) -> Tensor:
        return self(batch.tokens, batch.position_ids, batch.segments.to_tensor(), labels=batch.labels)

    @property
    def training_loss_reduction(self) -> Any:
        shape = ModelShape.from_nemo(vars(self.config), "the model's configuration")
        flops = partial(training_flops, shape, layout=self.pair_layout)
        return LongPOLossReduction(self.objective, flops)

    validation_loss_reduction = training_loss_reduction
