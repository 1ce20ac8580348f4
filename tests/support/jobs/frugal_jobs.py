"""What a worker of `WorkerPool` runs to test layers that keep fewer activations: Megatron's, in one process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from support.jobs.gloo_jobs import gloo_group
from support.memory_watch import LiveBytes
from torch import Tensor

from nemo_longpo.activations import HostMemory, NoStream
from nemo_longpo.backends import cpu
from nemo_longpo.errors import InputError

HIDDEN, WIDE = 32, 512
PIECE = 1000


@contextmanager
def _megatron() -> Iterator[None]:
    from megatron.core import parallel_state, tensor_parallel

    with gloo_group():
        cpu.activate()
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        yield
        parallel_state.destroy_model_parallel()


def _block(
    layers: int,
    offload: bool,
    tile: int | None,
    first_stage: bool = True,
    tp_comm_overlap: bool = False,
    **settings: Any,
) -> Any:
    """Layers as on the CPU backend, with inputs in host memory or the feed-forward part in tiles."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules

    from nemo_longpo.megatron.attention import CpuPairAttention, RMSNorm
    from nemo_longpo.megatron.frugal_layers import keep_fewer_activations

    config = TransformerConfig(
        num_layers=layers,
        num_attention_heads=2,
        hidden_size=HIDDEN,
        ffn_hidden_size=WIDE,
        activation_func=torch.nn.functional.silu,
        **{"gated_linear_unit": True, "add_bias_linear": False, "normalization": "RMSNorm", "hidden_dropout": 0.0}
        | settings,
    )
    cpu.without_cuda_kernels(config)
    config.tp_comm_overlap = tp_comm_overlap
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = CpuPairAttention
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    torch.manual_seed(0)
    spec = TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)
    block = TransformerBlock(config, spec, pre_process=first_stage)
    keep_fewer_activations(block, HostMemory(NoStream(), PIECE) if offload else None, tile)
    return block


def _loss(block: Any, hidden: Tensor) -> Tensor:
    block.set_input_tensor(hidden)
    rope = torch.zeros(len(hidden), 1, 1, HIDDEN // 2)
    return block(hidden, None, rotary_pos_emb=rope).square().sum()


def gradients(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per case: all gradients of micro-batches whose forwards all come before the backwards, how many rows the first
    feed-forward layer was called with, and the pieces of host memory for them."""
    results = []
    with _megatron():
        for case in cases:
            block = _block(**case)
            rows: list[int] = []
            block.layers[-1].mlp.linear_fc1.register_forward_pre_hook(
                lambda _, given, rows=rows: rows.append(len(given[0]))
            )
            torch.manual_seed(1)
            inputs = [torch.randn(count, 1, HIDDEN, requires_grad=True) for count in (22, 7)]
            losses = [_loss(block, hidden if case.get("first_stage") is False else hidden * 1.0) for hidden in inputs]
            while losses:
                losses.pop(0).backward()
            pieces = block.host_memory.pieces if case["offload"] else 0
            found = [leaf.grad.numpy() for leaf in (*inputs, *block.parameters())]
            results.append({"gradients": found, "rows": rows, "pieces": pieces})
    return results


def peaks(cases: Sequence[dict[str, Any]], rows: int) -> list[int]:
    """Per case: the most bytes of activations and gradients of activations at once in a forward and backward."""
    found = []
    with _megatron():
        for case in cases:
            block = _block(**case)
            for _ in range(2):  # in the first, gradients of weights and pieces of host memory are made
                start = torch.randn(rows, 1, HIDDEN, requires_grad=True)
                with LiveBytes() as live:
                    _loss(block, start * 1.0).backward()
            found.append(live.peak)
    return found


def refusals(cases: Sequence[dict[str, Any]]) -> list[str]:
    messages = []
    with _megatron():
        for case in cases:
            try:
                _block(**case)
            except InputError as error:
                messages.append(str(error))
    return messages
