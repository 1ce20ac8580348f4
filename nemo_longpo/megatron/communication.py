"""Puts on a model's config how context-parallel ranks communicate, and refuses what cannot work before it starts."""

from collections.abc import Sequence

from megatron.core.transformer import TransformerConfig

from nemo_longpo.backends import cpu
from nemo_longpo.errors import InputError
from nemo_longpo.parallel.communication import AttentionShape, CpCommType, check_communication
from nemo_longpo.placement import PairLayout


def set_communication(
    config: TransformerConfig,
    comm_type: CpCommType,
    hierarchical_sizes: Sequence[int] | None,
    cp_size: int,
    tp_size: int,
    pair_layout: PairLayout,
) -> None:
    """Set `cp_comm_type` and `hierarchical_context_parallel_sizes`, which belong to the job, not to the checkpoint.

    Raises:
        InputError: if Transformer Engine or our own attention cannot do it. Also on the CPU, where one exact attention
            stands in for every `comm_type`: a run tried out there starts on GPUs too.
    """
    window = None if config.window_size is None else (int(config.window_size[0]), int(config.window_size[1]))
    shape = AttentionShape(config.num_attention_heads, config.num_query_groups, config.kv_channels, window)
    check_communication(shape, comm_type, cp_size, tp_size, hierarchical_sizes)
    if shape.slides and (pair_layout == "shared_prefix" or cpu.is_active()):
        raise InputError(
            f"The model attends within a sliding window (window_size={list(config.window_size)}), which neither "
            "branches behind a shared prefix nor the CPU backend do; import the checkpoint with --full-attention."
        )
    if config.attention_dropout:
        raise InputError(
            f"The checkpoint has attention_dropout={config.attention_dropout}; LongPO's attention has no dropout, "
            "import it again with `longpo convert import`."
        )
    config.cp_comm_type = comm_type
    config.hierarchical_context_parallel_sizes = None if hierarchical_sizes is None else list(hierarchical_sizes)
