"""Megatron's output layer, which scores labels where it is given some.

Why a layer and not a function on its weight: with `overlap_param_gather`, Megatron's data parallelism waits for a
parameter in a forward pre-hook of the module that owns it, so the weight must be used inside a call of that module.

Gradient accumulation fusion (`gradient_accumulation_fusion`, of apex and Transformer Engine): with it, the backward of
Megatron's linear layers adds the weight's gradient to fp32 `main_grad` itself, sets `grad_added_to_main_grad`, and
hands autograd a dummy that the data-parallel hook drops. This layer takes no part in that, and nothing has to be
switched off: it sums its chunks in fp32 (P · H · 4 bytes for the length of its backward), rounds once and returns an
ordinary gradient. `grad_added_to_main_grad`, which every step resets, stays False for this weight, so the hook adds the
gradient to `main_grad`, once per micro-batch. All other layers keep the fusion. If the weight is also the embedding's:
- on one pipeline stage, autograd adds the embedding's gradient, which is never fused, before the hook sees the sum.
  Megatron marks that weight `zero_out_wgrad`, so that its own output layer's dummy is zero; here it changes nothing;
- on two stages, each copy has its own hook, and Megatron sums their `main_grad` at the end of the step.
`defer_embedding_wgrad_compute`, which keeps inputs and gradients of all logits until the end of the pipeline, is
refused.
"""

from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget, token_logprobs


class LogprobOutputLayer(ColumnParallelLinear):
    """`forward(hidden, weight, labels=labels)` is log p(label), fp32 [B, R]; without labels, Megatron's own layer.

    Hidden states are [R, B, H], or this rank's [R / tp, B, H] with sequence parallelism. One collective completes their
    gradient: an all-reduce, or with sequence parallelism a reduce-scatter.
    """

    vocab_start: int  # the first vocabulary row of this rank
    real_rows: int  # how many of its rows the vocabulary has; what follows is padding and takes no probability
    budget: LogitBudget

    @classmethod
    def take_over(cls, layer: ColumnParallelLinear, vocab_size: int, budget: LogitBudget) -> None:
        """Turn the output layer that Megatron has built into this class, in place.

        GPTModel offers no way to say which class to build. Changing the class of what it has built, as FSDP2 does with
        modules, keeps parameters, state-dict keys and everything that refers to the layer.
        """
        assert type(layer) is ColumnParallelLinear, f"not Megatron's output layer: {layer}"
        if layer.config.defer_embedding_wgrad_compute:
            raise InputError(
                "defer_embedding_wgrad_compute puts off a gradient that this model computes at once, from logits that "
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
            hidden = gather_from_sequence_parallel_region(input_, group=self.tp_group)
        else:
            hidden = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        weight = self.weight if weight is None else weight
        logprobs = token_logprobs(
            hidden.flatten(0, 1),
            weight if self.real_rows == len(weight) else weight[: self.real_rows],
            labels.T.flatten(),
            chunk_size=self.budget.chunk_size(len(weight), self.input_size, weight.dtype),
            vocab_start=self.vocab_start,
            group=self.tp_group,
        )
        return logprobs.view(labels.T.shape).T
