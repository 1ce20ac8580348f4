"""The NeMo model: a stock architecture trained with the LongPO objective."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, get_args

import torch
from nemo.collections import llm
from nemo.collections.common.tokenizers import TokenizerSpec
from nemo.lightning import OptimizerModule, megatron_parallel
from torch import Tensor, distributed as dist

from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget
from nemo_longpo.megatron import backend, gpt, loss, pair_data, topology
from nemo_longpo.model_directory.rope_settings import RopeSettings, parse_scaling
from nemo_longpo.objective import Objective
from nemo_longpo.parallel import layout
from nemo_longpo.placement import LOGPROB_MEMORY_GB, PairLayout


class LongPOLossReduction(megatron_parallel.MegatronLossReduction):
    """NeMo's hook between a micro-batch's output and the schedule; every metric is a mean over the batch's pairs."""

    def __init__(self, pair_loss: loss.PairLoss) -> None:
        super().__init__()
        self.pair_loss = pair_loss

    def forward(self, batch: layout.PairRows, forward_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.pair_loss(batch, forward_out, topology.current_topology().cp_group)

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Average each metric over micro-batches and data-parallel ranks (one pair per micro-batch)."""
        names, dp_group = losses_reduced_per_micro_batch[0], topology.current_topology().dp_group
        pairs = [torch.stack([metrics[name] for name in names]) for metrics in losses_reduced_per_micro_batch]
        values = torch.stack(pairs).mean(0)
        dist.all_reduce(values, group=dp_group)
        return dict(zip(names, values / dp_group.size(), strict=True))


@dataclass(frozen=True, kw_only=True)
class ArchitectureFromCheckpoint:
    """Placeholder for `LongPOModel.config` until `LongPOResume` has read the architecture from the checkpoint.

    `llm.finetune` checks these fields before it reads any checkpoint, so their values must pass.
    """

    num_layers: int = 1
    hidden_size: int = 1
    ffn_hidden_size: int = 1
    num_attention_heads: int = 1
    seq_length: int = 2**20


class LongPOModel(llm.GPTModel):
    """Trains a decoder on preference pairs.

    Args:
        config: the architecture, NeMo's `MistralConfig`, `Qwen2Config`, `Qwen3Config` or `LlamaConfig`; by default the
            checkpoint's.
        rope_scaling: a `rope_scaling` object as in Hugging Face's `config.json` (linear, yarn or llama3), on top of the
            config's `rotary_base`; by default the checkpoint's own.
        objective: which loss, and its constants.
        pair_layout: how chosen and rejected become rows. `shared_prefix` runs the document once and both answers after
            it; `concatenated`, two full causal sequences, gives the same numbers at twice the cost.
        logprob_memory_gb: memory (10⁹ bytes) for logits; it sets how many of them are computed at once.
        logprob_chunk_size: instead, the number of rows, with the whole vocabulary.
        offload_layer_inputs: with `full` recompute, keep what it saves, the inputs of its layers, in host memory; they
            come back while the layer after them is recomputed. The result is the same, bit for bit.
        mlp_tile_tokens: rows of a tensor-parallel group whose feed-forward part is computed at once, and once more in
            the backward; by default all. Smaller tiles need less memory and keep matrix units less busy.
        fused_kernels: on a GPU, fuse the gate of SwiGLU and the rotary embedding where they can be; else as NeMo's
            config of the architecture has it.
    """

    def __init__(
        self,
        config: llm.GPTConfig | None = None,
        rope_scaling: Optional[dict[str, Any]] = None,  # noqa: UP045 (NeMo-Run's parser)
        objective: Objective | None = None,
        pair_layout: PairLayout = "shared_prefix",
        logprob_memory_gb: float = LOGPROB_MEMORY_GB,
        logprob_chunk_size: Optional[int] = None,  # noqa: UP045 (NeMo-Run's parser)
        offload_layer_inputs: bool = False,
        mlp_tile_tokens: Optional[int] = None,  # noqa: UP045 (NeMo-Run's parser)
        fused_kernels: bool = True,
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
        self.offload_layer_inputs = offload_layer_inputs
        self.mlp_tile_tokens = mlp_tile_tokens
        self.fused_kernels = fused_kernels

    def adopt_architecture(self, config: llm.GPTConfig, rope_scaling: dict[str, Any] | None) -> None:
        """Use a checkpoint's architecture for the model and for what NeMo writes into our own checkpoints."""
        self.config = config
        self.__io__.config = config.__io__
        if self.rope_scaling is None:
            self.rope_scaling = self.__io__.rope_scaling = rope_scaling

    @property
    def rope(self) -> RopeSettings:
        return RopeSettings(self.config.rotary_base, parse_scaling(self.rope_scaling, "model.rope_scaling"))

    def configure_model(self, vp_stage: int | None = None) -> None:
        if not hasattr(self, "module"):
            self.module = gpt.LogprobGPTModel(
                self.config,
                self.rope,
                self.logit_budget,
                backend.current_backend(),
                vp_stage,
                offload_layer_inputs=self.offload_layer_inputs,
                mlp_tile_tokens=self.mlp_tile_tokens,
            )

    def data_step(self, dataloader_iter: Iterator) -> layout.PairRows:
        """Return this rank's rows of the next pair."""
        return pair_data.next_rows(dataloader_iter).to_device(torch.cuda.current_device())

    def forward_step(self, batch: layout.PairRows) -> Tensor:
        return loss.logprobs_of(self, batch)

    @property
    def training_loss_reduction(self) -> Any:
        return LongPOLossReduction(loss.PairLoss(self.objective, vars(self.config), self.pair_layout))

    validation_loss_reduction = training_loss_reduction
