"""Core attention on GPUs: Transformer Engine's for trunks, ours for the branches after them.

Import this only where Transformer Engine is installed: without it Megatron-Core's class derives from a mock.

Shape legend: S local rows (of each tree the trunk, then its branches), B batch, H query heads of this rank, K key/value
heads of this rank, D head size.
"""

from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig, enums
from torch import Tensor, distributed as dist

from .attention import attend_over_trees
from .topology import current_topology


class TEPairAttention(TEDotProductAttention):
    """A subclass, so that state-dict keys and everything that Megatron and NeMo set on the module stay as they are.

    For Transformer Engine a trunk's rows are an ordinary causal sequence in sbhd, zigzag over the context-parallel
    ranks, and each trunk is a call of its own. It chooses FlashAttention or cuDNN and exchanges keys and values as
    `cp_comm_type` says.

    Args:
        cp_groups: for `a2a+p2p`, the group that exchanges heads and the group that forms a ring. Megatron-Core would
            take them from its global state, but NeMo cannot put them there.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: enums.AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = "p2p",
        cp_groups: list[dist.ProcessGroup] | None = None,
        **settings: Any,
    ):
        assert (attention_type, attn_mask_type) == ("self", enums.AttnMaskType.causal), "only causal self-attention"
        super().__init__(
            config,
            layer_number,
            attn_mask_type,
            attention_type,
            softmax_scale=softmax_scale,
            cp_comm_type="p2p" if cp_groups else cp_comm_type,
            **settings,
        )
        self.branch_group, self.branch_scale = current_topology().cp_group, softmax_scale
        if cp_groups:
            ranks = dist.get_process_group_ranks(self.branch_group)
            self.set_context_parallel_group(cp_groups, ranks, self.cp_stream, cp_comm_type)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: enums.AttnMaskType,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Return [S, B, H·D]; `attention_mask` carries the trees, see `attend_over_trees`."""
        assert attention_bias is None, "branches have no attention bias"
        assert packed_seq_params is None, "a micro-batch is one pair"

        def attend_causally(query_SBHD: Tensor, key_SBKD: Tensor, value_SBKD: Tensor) -> Tensor:
            query, key, value = (_beginning_its_memory(rows) for rows in (query_SBHD, key_SBKD, value_SBKD))
            # super() without arguments works only in a method's own frame.
            return super(TEPairAttention, self).forward(query, key, value, None, attn_mask_type)

        return attend_over_trees(
            query, key, value, attention_mask, attend_causally, self.branch_group, self.branch_scale
        )


def _beginning_its_memory(rows: Tensor) -> Tensor:
    """Copy contiguous rows out of the midst of another tensor: those of a second trunk, which is a short prompt.

    Transformer Engine recognises memory layouts by strides and offsets (attention/dot_product_attention/utils.py:2006
    of 2.9), and refuses such rows; rows that are not contiguous it copies by itself.
    """
    within = rows.is_contiguous() and rows.storage_offset()
    # Of a single row the strides would stay, and are compared too.
    return rows.clone(memory_format=torch.contiguous_format) if within else rows
