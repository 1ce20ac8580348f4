"""The NeMo model: a stock architecture trained with the LongPO objective.

Loss and metrics from the log-probs of each rank's rows: context-parallel ranks sum their own rows, one all-reduce over
the group completes the sums, and the gradient passes through that all-reduce unchanged. Megatron then averages
gradients over DP × CP, after its schedule multiplied the loss by the CP size
(megatron/core/pipeline_parallel/schedules.py, forward_step_calc_loss, 2-tuple branch): together that is the sum over CP
ranks and the mean over DP ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional, get_args

import torch
from nemo.collections import llm
from nemo.collections.common.tokenizers import TokenizerSpec
from nemo.lightning import OptimizerModule, megatron_parallel
from torch import Tensor, distributed as dist

from nemo_longpo.costs import flops, model_shape
from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget
from nemo_longpo.model_directory.rope_settings import RopeSettings, parse_scaling
from nemo_longpo.objective import Objective, PairSums, longpo_loss, token_divergence
from nemo_longpo.parallel import collectives, layout, segments
from nemo_longpo.placement import LOGPROB_MEMORY_GB, PairLayout

from . import backend, data, gpt, topology

WORK = ("tokens", "flops")


def sum_pair(logprobs: Tensor, rows: layout.PairRows, objective: Objective, cp_group: dist.ProcessGroup) -> PairSums:
    """Reduce log-probs [B, R] of this rank's rows to the sums of one pair (each [1]), complete over the CP group.

    The document's tree comes first; what lies behind it are short prompts. Only a loss that trains the divergence gets
    it, of the chosen rows alone: elsewhere a reference far below the policy makes exp(d) infinite, and a gradient of 0
    through it is not a number.
    """
    document, *_ = segments.local_slices(rows.trees, cp_group.size())
    behind = slice(document.stop, None)

    def total(values: Tensor, mask: Tensor, where: slice = document) -> Tensor:
        return (values[:, where] * mask[:, where]).sum()

    divergence = torch.zeros_like(logprobs)
    if objective.loss_type == "sft_chosen_constraint":
        divergence = token_divergence(logprobs, torch.where(rows.chosen_mask > 0, rows.ref_logps, logprobs.detach()))
    partial = {
        "chosen": total(logprobs, rows.chosen_mask),
        "rejected": total(logprobs, rows.rejected_mask),
        "ref_chosen": total(rows.ref_logps, rows.chosen_mask),
        "ref_rejected": total(rows.ref_logps, rows.rejected_mask),
        "sequence": total(logprobs, rows.nll_mask),
        "chosen_divergence": total(divergence, rows.chosen_mask),
        "short_chosen": total(logprobs, rows.chosen_mask, behind),
        "short_rejected": total(logprobs, rows.rejected_mask, behind),
    }
    sums = collectives.sum_over_ranks(torch.stack(list(partial.values())), cp_group)
    return PairSums(
        **{name: value.view(1) for name, value in zip(partial, sums, strict=True)},
        chosen_tokens=rows.chosen_tokens.view(1),
        rejected_tokens=rows.rejected_tokens.view(1),
        sequence_tokens=rows.sequence_tokens.view(1),
        trunk_tokens=logprobs.new_full((1,), rows.lengths[0][0]),
    )


class LongPOLossReduction(megatron_parallel.MegatronLossReduction):
    """NeMo's hook between a micro-batch's output and the schedule; every metric is a mean over the batch's pairs.

    Adds the `WORK` of a pair to the metrics of `longpo_loss`: its tokens, and the FLOPs of its forward and backward,
    `training_flops(lengths)`.
    """

    def __init__(self, objective: Objective, training_flops: Callable[[flops.PairLengths], float]) -> None:
        super().__init__()
        self.objective = objective
        self.training_flops = training_flops

    def forward(self, batch: layout.PairRows, forward_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        sums = sum_pair(forward_out, batch, self.objective, topology.current_topology().cp_group)
        loss, metrics = longpo_loss(sums, self.objective)
        document, *short = batch.lengths
        lengths = flops.PairLengths(*document, short)
        work = {"tokens": batch.pair_tokens, "flops": self.training_flops(lengths)}
        return loss, metrics | {name: loss.new_tensor(work[name]) for name in WORK}

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
        return data.next_rows(dataloader_iter).to_device(torch.cuda.current_device())

    def forward_step(self, batch: layout.PairRows) -> Tensor:
        return self(batch.tokens, batch.position_ids, segments.to_tensor(batch.trees), labels=batch.labels)

    @property
    def training_loss_reduction(self) -> Any:
        shape = model_shape.ModelShape.from_nemo(vars(self.config), "the model's configuration")
        of_pair = partial(flops.training_flops, shape, layout=self.pair_layout)
        return LongPOLossReduction(self.objective, of_pair)

    validation_loss_reduction = training_loss_reduction
