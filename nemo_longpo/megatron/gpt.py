"""Megatron's GPT that answers labels with token log-probabilities instead of a loss over whole logits.

Shape legend: B sequences, R local rows, H hidden size, V vocabulary, P vocabulary rows of this tensor-parallel rank.
"""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from nemo.collections.llm.gpt.model.base import GPTConfig
from torch import Tensor

from nemo_longpo.attention.rope import inverse_frequencies, rotary_angles
from nemo_longpo.backends import cpu
from nemo_longpo.logprobs import token_logprobs

from .layer_spec import block_spec
from .topology import current_topology


class LogprobGPTModel(GPTModel):
    """`forward(..., labels)` returns log p(label) per row, fp32 [B, R], 0 where the label is `IGNORE_LABEL`.

    `vocab_size` is the number of rows the checkpoint's embedding has. Under tensor parallelism the tables are padded to
    a multiple of it; the padding rows' logits are −inf, so they take no probability and get no gradient.
    """

    def __init__(self, config: GPTConfig, *, vocab_size: int, logprob_chunk_size: int, **kwargs: Any):
        topology = current_topology()
        rows_per_rank = -(-vocab_size // topology.tp_size)
        super().__init__(config, vocab_size=rows_per_rank * topology.tp_size, **kwargs)
        self.logprob_chunk_size = logprob_chunk_size
        self.vocab_start = rows_per_rank * topology.tp_rank
        self.real_rows = max(0, min(rows_per_rank, vocab_size - self.vocab_start))
        self.tp_group = topology.tp_group
        self.inverse_frequencies = inverse_frequencies(config.kv_channels, config.rotary_base)
        if self.post_process:
            # Hidden states are gathered once in `_postprocess`, not again for every chunk of logits.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = topology.tp_size > 1

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
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        if labels is None:
            return super()._postprocess(hidden_states, input_ids, position_ids, None, **kwargs)
        logprobs = token_logprobs(
            hidden_states.transpose(0, 1).flatten(0, 1),
            labels.flatten(),
            self._local_logits,
            vocab_start=self.vocab_start,
            group=self.tp_group,
            chunk_size=self.logprob_chunk_size,
        )
        return logprobs.view_as(labels)

    def _local_logits(self, hidden: Tensor) -> Tensor:
        """[n, H] → [n, P], −inf in the padding rows of the vocabulary."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits = self.output_layer(hidden[:, None], weight=weight)[0][:, 0]
        padding = torch.arange(logits.shape[-1], device=logits.device) >= self.real_rows
        return logits.masked_fill(padding, -torch.inf) if self.real_rows < logits.shape[-1] else logits


def build_gpt(config: GPTConfig, logprob_chunk_size: int, vp_stage: int | None = None) -> LogprobGPTModel:
    """Build this rank's share of the model that a NeMo config describes, for the backend of this machine."""
    # Pairs differ in length, and so do the activations that pipeline stages exchange.
    config.variable_seq_lengths = config.pipeline_model_parallel_size > 1
    if cpu.is_active():
        cpu.without_cuda_kernels(config)
    topology = current_topology(vp_stage)
    return LogprobGPTModel(
        config,
        transformer_layer_spec=block_spec(config, vp_stage),
        vocab_size=config.vocab_size,
        logprob_chunk_size=logprob_chunk_size,
        max_sequence_length=config.seq_length,
        parallel_output=True,
        share_embeddings_and_output_weights=config.share_embeddings_and_output_weights,
        position_embedding_type=config.position_embedding_type,
        rotary_percent=config.rotary_percent,
        rotary_base=config.rotary_base,
        seq_len_interpolation_factor=config.seq_len_interpolation_factor,
        pre_process=topology.is_first_stage,
        post_process=topology.is_last_stage,
        scatter_embedding_sequence_parallel=config.scatter_embedding_sequence_parallel,
        vp_stage=vp_stage,
    )
