"""Attention kernels that give and take the log-sum-exp, so that partial results can be merged exactly.

One partial result covers some keys: `out = softmax(scale · q kᵀ) v` over them, and `lse = log Σ exp(scale · q kᵀ)`.
Results over disjoint keys merge by their weights `exp(lse)`. The backward takes the *merged* out and lse: then the
probabilities that it recomputes are those of the whole row, and the gradients of the parts simply add up.

Shape legend: N query rows, M key rows, H query heads, K key/value heads (H is a multiple of K), D head size.
"""

from typing import Protocol

import torch
from torch import Tensor

aten = torch.ops.aten


class AttentionKernel(Protocol):
    """`causal` asks for N = M: kernels disagree about which corner of a rectangle the diagonal starts from."""

    def forward(
        self, query_NHD: Tensor, key_MKD: Tensor, value_MKD: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """`out` [N, H, D] in the query's dtype and `lse` [N, H] in fp32 (fp64 for fp64), natural logarithm."""
        ...

    def backward(
        self,
        grad_NHD: Tensor,
        query_NHD: Tensor,
        key_MKD: Tensor,
        value_MKD: Tensor,
        out_NHD: Tensor,
        lse_NH: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value over these keys, from `out` and `lse` over all keys."""
        ...


def _heads_first(rows_NHD: Tensor) -> Tensor:
    return rows_NHD.transpose(0, 1)[None]


def _rows_first(heads_1HND: Tensor) -> Tensor:
    return heads_1HND[0].transpose(0, 1)


class CpuKernel:
    """torch's flash attention for the CPU; with fewer key/value heads than query heads from torch 2.13 on."""

    def forward(self, query_NHD, key_MKD, value_MKD, causal, scale):
        q, k, v = (_heads_first(tensor) for tensor in (query_NHD, key_MKD, value_MKD))
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return _rows_first(out), lse[0].T

    def backward(self, grad_NHD, query_NHD, key_MKD, value_MKD, out_NHD, lse_NH, causal, scale):
        q, k, v = (_heads_first(tensor) for tensor in (query_NHD, key_MKD, value_MKD))
        grad, out = (_heads_first(tensor).contiguous() for tensor in (grad_NHD, out_NHD))
        lse = lse_NH.T[None].contiguous()
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )
        return tuple(_rows_first(tensor) for tensor in gradients)


class CudaKernel:
    """FlashAttention-2 as torch ships it: bf16 or fp16, any H / K."""

    def forward(self, query_NHD, key_MKD, value_MKD, causal, scale):
        out, lse, *_ = aten._flash_attention_forward(
            query_NHD[None],
            key_MKD[None],
            value_MKD[None],
            None,
            None,
            query_NHD.shape[0],
            key_MKD.shape[0],
            0.0,
            causal,
            False,
            scale=scale,
        )
        return out[0], lse[0].T

    def backward(self, grad_NHD, query_NHD, key_MKD, value_MKD, out_NHD, lse_NH, causal, scale):
        # Without dropout the kernel does not read the state of the random generator, but it asks for one.
        generator_state = torch.zeros(2, dtype=torch.uint64, device=query_NHD.device)
        gradients = aten._flash_attention_backward(
            grad_NHD[None].contiguous(),
            query_NHD[None],
            key_MKD[None],
            value_MKD[None],
            out_NHD[None],
            lse_NH.T[None].contiguous(),
            None,
            None,
            query_NHD.shape[0],
            key_MKD.shape[0],
            0.0,
            causal,
            generator_state,
            torch.empty(0, device=query_NHD.device),
            scale=scale,
        )
        return tuple(gradient[0] for gradient in gradients)


def kernel_for(query: Tensor) -> AttentionKernel:
    """The kernel for this tensor's device. Raises ValueError if it does not take the dtype."""
    if not query.is_cuda:
        return CpuKernel()
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"attention over a shared prefix on a GPU takes bf16 or fp16, not {query.dtype}; "
            "set trainer.plugins.precision=bf16-mixed and optim.config.bf16=true, or model.pair_layout=concatenated"
        )
    return CudaKernel()
