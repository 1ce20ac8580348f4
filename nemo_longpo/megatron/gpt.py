"""Megatron's GPT that answers labels with token log-probabilities instead of a loss over whole logits.

Shape legend: B sequences, R local rows, D head size.
"""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from nemo.collections.llm.gpt.model.base import GPTConfig
from torch import Tensor

from nemo_longpo.attention.rope import inverse_frequencies, rotary_angles
from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget
from nemo_longpo.model_directory.rope_settings import RopeSettings

from .backend import Backend
from .output_layer import LogprobOutputLayer
from .topology import current_topology


class LogprobGPTModel(GPTModel):
    """This pipeline stage's share of a model; `forward(..., labels)` returns log p(label) per row, fp32 [B, R], 0 where
    the label is `IGNORE_LABEL`.

    `config` has the job's settings, see `job_settings`, and `vocab_size` rows of the checkpoint's embedding. Under
    tensor parallelism the tables are padded to a multiple of it; the padding rows' logits are −inf, so they take no
    probability and get no gradient.

    Angles come from `rope` and the rows' positions. Megatron's own rotary embedding, which counts rows, is never asked.
    """

    def __init__(
        self, config: GPTConfig, rope: RopeSettings, budget: LogitBudget, backend: Backend, vp_stage: int | None = None
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
        if self.post_process:
            LogprobOutputLayer.take_over(self.output_layer, config.vocab_size, budget)

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, decoder_input: Tensor | None = None, **unused: Any):
        """Embeddings, and rotary angles [R, 1, 1, D] of the rows' own positions (the same for all B sequences)."""
        if self.pre_process:
            decoder_input = self.embedding(input_ids=input_ids, position_ids=position_ids)
            if self.config.recompute_granularity is not None and torch.is_grad_enabled():
                # Behind a frozen embedding (LoRA) nothing would be trained: Megatron's recompute runs without a graph
                # unless its input asks for a gradient.
                decoder_input.requires_grad_()
        return decoder_input, rotary_angles(position_ids[0], self.inverse_frequencies), None, None, None

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
