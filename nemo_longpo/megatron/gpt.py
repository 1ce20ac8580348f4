"""Megatron's GPT, returning token log-probabilities of the labels instead of a loss over whole logits.

Shape legend: B sequences, R local rows, H hidden size, P this rank's rows of the vocabulary, D head size.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_longpo.activations import HostMemory
from nemo_longpo.attention.rope import inverse_frequencies, rotary_angles
from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget, token_logprobs
from nemo_longpo.model_directory.rope_settings import RopeSettings

from . import versions
from .backend import Backend
from .frugal_layers import keep_fewer_activations
from .topology import current_topology


class LogprobOutputLayer(tensor_parallel.ColumnParallelLinear):
    """`forward(hidden, weight, labels=labels)` returns log p(label), fp32 [B, R]; without labels, logits as Megatron's.

    Hidden states are [R, B, H], or this rank's [R / tp, B, H] with sequence parallelism. One collective completes their
    gradient: an all-reduce, or with sequence parallelism a reduce-scatter.

    It is a layer and not a function of the weight: with `overlap_param_gather`, Megatron's data parallelism waits for a
    parameter in a forward pre-hook of the module that owns it, so the weight must be used inside a call of that module.

    In data parallelism the weight's gradient of each tile is added to the fp32 `main_grad` at once, see
    `_AddedToMainGrad`, as Megatron's linear layers do under `gradient_accumulation_fusion`; this needs none of its
    kernels and is done whatever that setting says. Where `main_grad` has the precision of the weight
    (`grad_reduce_in_fp32=False`), adding tile after tile to it would round each time: there the layer sums its tiles in
    fp32, rounds once and returns an ordinary gradient.
    `defer_embedding_wgrad_compute`, which keeps inputs and gradients of all logits until the end of the pipeline, is
    refused.
    """

    vocab_start: int  # the first vocabulary row of this rank
    real_rows: int  # how many of its rows belong to the vocabulary; the rest is padding with probability 0
    budget: LogitBudget

    @classmethod
    def take_over(cls, layer: tensor_parallel.ColumnParallelLinear, vocab_size: int, budget: LogitBudget) -> None:
        """Turn the output layer that Megatron has built into this class, in place.

        GPTModel has no setting for the class to build. Changing the class of the built layer, as FSDP2 does with
        modules, keeps parameters, state-dict keys and all references to the layer.
        """
        assert type(layer) is tensor_parallel.ColumnParallelLinear, f"not Megatron's output layer: {layer}"
        if layer.config.defer_embedding_wgrad_compute:
            raise InputError(
                "defer_embedding_wgrad_compute delays a gradient that this model computes at once, from logits that "
                "it never keeps; leave it off."
            )
        layer.__class__ = cls
        assert isinstance(layer, cls)
        rows = layer.output_size_per_partition
        layer.vocab_start = rows * layer.tp_group.rank()
        layer.real_rows = max(0, min(rows, vocab_size - layer.vocab_start))
        layer.budget = budget

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        labels: Tensor | None = None,
    ):
        if labels is None:
            return super().forward(input_, weight, runtime_gather_output)
        if self.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(input_, group=self.tp_group)
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        weight = self.weight if weight is None else weight
        rows, columns = self.budget.tile(len(weight), self.input_size, weight.dtype)
        main_grad = _fp32_main_grad(weight)
        if main_grad is not None:
            hidden = _AddedToMainGrad.apply(hidden, weight)
        real = slice(self.real_rows)
        logprobs = token_logprobs(
            hidden.flatten(0, 1),
            weight if self.real_rows == len(weight) else weight[real],
            labels.T.flatten(),
            chunk_size=rows,
            vocab_chunk_size=columns,
            vocab_start=self.vocab_start,
            group=self.tp_group,
            weight_grad_PH=None if main_grad is None else main_grad[real],
        )
        return logprobs.view(labels.T.shape).T


def _fp32_main_grad(weight: Any) -> Tensor | None:
    """The buffer in which Megatron's data parallelism adds up this weight's gradient over micro-batches, if it is fp32.

    Its hook then looks at `grad_added_to_main_grad`; buffers of others, without that mark, are left to their hooks.
    """
    if not weight.requires_grad or getattr(weight, "grad_added_to_main_grad", None) is None:
        return None
    return weight.main_grad if weight.main_grad.dtype == torch.float32 else None


class _AddedToMainGrad(torch.autograd.Function):
    """Returns the hidden states. Its backward comes after that of the log-probs, which has added the weight's gradient
    to `main_grad`: it says so to the data-parallel hook and gives autograd a gradient to call the hook with.

    The hook drops that gradient (megatron/core/distributed/distributed_data_parallel.py, `_make_backward_post_hook`),
    so it is only a view of `main_grad`'s memory in the weight's type, and costs nothing. If the weight is also the
    embedding's:
    - on one pipeline stage, Megatron marks it `zero_out_wgrad` and the hook adds what autograd has: that must be the
      embedding's gradient alone, so nothing is added to it here;
    - on two stages, each copy has its own hook, and Megatron sums their `main_grad` at the end of the step.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = ctx.weight
        weight.grad_added_to_main_grad = True
        if getattr(weight, "zero_out_wgrad", False):
            return grad, None
        return grad, weight.main_grad.view(weight.dtype).flatten()[: weight.numel()].view_as(weight)


class LogprobGPTModel(GPTModel):
    """This pipeline stage's share of a model; `forward(..., labels)` returns log p(label) per row, fp32 [B, R], 0 where
    the label is `IGNORE_LABEL`.

    `config` is one of NeMo's or Megatron-Bridge's for a GPT: a TransformerConfig that also has `vocab_size`,
    `seq_length`, `share_embeddings_and_output_weights`, `position_embedding_type` and
    `scatter_embedding_sequence_parallel`. It has the job's settings (see `job_settings`); its `vocab_size` counts the
    rows of the checkpoint's embedding. Under tensor parallelism the tables are padded to a multiple of its size; the
    padding rows' logits are −inf, so they have probability 0 and get no gradient.

    Angles come from `rope` and the rows' positions. Megatron's own rotary embedding, which counts rows, is not used.
    `offload_layer_inputs` and `mlp_tile_tokens` are those of `Placement`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rope: RopeSettings,
        budget: LogitBudget,
        backend: Backend,
        vp_stage: int | None = None,
        *,
        offload_layer_inputs: bool = False,
        mlp_tile_tokens: int | None = None,
    ):
        topology = current_topology(vp_stage)
        super().__init__(
            config,
            transformer_layer_spec=backend.layer_spec(config, vp_stage),
            vocab_size=-(-config.vocab_size // topology.tp_size) * topology.tp_size,
            max_sequence_length=config.seq_length,
            parallel_output=True,
            share_embeddings_and_output_weights=config.share_embeddings_and_output_weights,
            position_embedding_type=config.position_embedding_type,
            pre_process=topology.is_first_stage,
            post_process=topology.is_last_stage,
            scatter_embedding_sequence_parallel=config.scatter_embedding_sequence_parallel,
            vp_stage=vp_stage,
        )
        self.inverse_frequencies = inverse_frequencies(rope, config.kv_channels)
        keep_fewer_activations(
            self.decoder, HostMemory(backend.copies()) if offload_layer_inputs else None, mlp_tile_tokens
        )
        if self.post_process:
            LogprobOutputLayer.take_over(self.output_layer, config.vocab_size, budget)

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, decoder_input: Tensor | None = None, **unused: Any):
        """Return embeddings, and rotary angles [R, 1, 1, D] of the rows' positions (the same for all B sequences)."""
        if self.pre_process:
            decoder_input = self.embedding(input_ids=input_ids, position_ids=position_ids)
            if self.config.recompute_granularity is not None and torch.is_grad_enabled():
                # After a frozen embedding (LoRA) nothing would be trained: Megatron's recompute builds no graph
                # unless its input requires a gradient.
                decoder_input.requires_grad_()
        return versions.preprocessed(decoder_input, rotary_angles(position_ids[0], self.inverse_frequencies))

    def _postprocess(self, hidden_states: Tensor, input_ids: Tensor, position_ids: Tensor, labels: Tensor, **kwargs):
        if not self.post_process:
            return hidden_states
        if labels is None:
            return super()._postprocess(hidden_states, input_ids, position_ids, None, **kwargs)
        if not isinstance(self.output_layer, LogprobOutputLayer):
            raise InputError(
                f"{type(self.output_layer).__name__} wraps the output layer, whose logits are never computed as a "
                "whole; leave output_layer out of the adapter's target_modules."
            )
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        return self.output_layer(hidden_states, weight, labels=labels)


@contextmanager
def turned_by(rope: RopeSettings, modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Let the models in `modules` turn queries and keys by other settings, of the same attention factor."""
    models = [part for module in modules for part in module.modules() if isinstance(part, LogprobGPTModel)]
    own = [model.inverse_frequencies for model in models]
    try:
        for model in models:
            model.inverse_frequencies = inverse_frequencies(rope, model.config.kv_channels)
        yield
    finally:
        for model, frequencies in zip(models, own, strict=True):
            model.inverse_frequencies = frequencies
