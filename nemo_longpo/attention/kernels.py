"""Attention to some of a row's keys, by kernels that give and take the log-sum-exp, so that parts merge exactly.

A part covers some keys: `out = softmax(scale · q kᵀ) v` over them, and `lse = log Σ exp(scale · q kᵀ)`. Parts over
disjoint keys merge by their weights `exp(lse)`. The backward takes the *merged* out and lse: then the probabilities
that it recomputes are those of the whole row, and the gradients of the parts simply add up.

Shape legend: N query rows, M key rows, H query heads, K key/value heads, G = H / K query heads that share one, D head
size.
"""

from typing import Protocol

import torch
from torch import Tensor

from nemo_longpo.errors import InputError

aten = torch.ops.aten


class AttentionKernel(Protocol):
    """One device's attention; any G, at least one key."""

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


class CpuKernel:
    """torch's flash attention for the CPU; G > 1 with `causal` from torch 2.13 on."""

    def forward(self, query_NHD, key_MKD, value_MKD, causal, scale):
        q, k, v = (_heads_first(tensor) for tensor in (query_NHD, key_MKD, value_MKD))
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return _rows_first(out), lse.squeeze(0).T

    def backward(self, grad_NHD, query_NHD, key_MKD, value_MKD, out_NHD, lse_NH, causal, scale):
        q, k, v = (_heads_first(tensor) for tensor in (query_NHD, key_MKD, value_MKD))
        grad, out = (_heads_first(tensor).contiguous() for tensor in (grad_NHD, out_NHD))
        lse = lse_NH.T.unsqueeze(0).contiguous()
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )
        return tuple(_rows_first(tensor) for tensor in gradients)


class CudaKernel:
    """FlashAttention-2 as torch ships it: bf16 or fp16, D a multiple of 8 and at most 256."""

    def forward(self, query_NHD, key_MKD, value_MKD, causal, scale):
        q, k, v = (tensor.unsqueeze(0) for tensor in (query_NHD, key_MKD, value_MKD))
        out, lse, *_ = aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, causal, False, scale=scale
        )
        return out.squeeze(0), lse.squeeze(0).T

    def backward(self, grad_NHD, query_NHD, key_MKD, value_MKD, out_NHD, lse_NH, causal, scale):
        grad, q, k, v, out = (t.unsqueeze(0) for t in (grad_NHD, query_NHD, key_MKD, value_MKD, out_NHD))
        lse = lse_NH.T.unsqueeze(0).contiguous()
        # Only dropout reads the state of the random generator, but the signature wants one, and a tensor it never uses.
        generator, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
        gradients = aten._flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[1], k.shape[1], 0.0, causal, generator, unused, scale=scale
        )
        return tuple(gradient.squeeze(0) for gradient in gradients)


def kernel_for(query: Tensor) -> AttentionKernel:
    """The kernel for this tensor's device. Raises InputError if it does not take the dtype."""
    if not query.is_cuda:
        return CpuKernel()
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise InputError(
            f"attention over a shared prefix on a GPU takes bf16 or fp16, not {query.dtype}; "
            "set trainer.plugins.precision=bf16-mixed and optim.config.bf16=true, or model.pair_layout=concatenated"
        )
    return CudaKernel()


def partial_attention(
    query_NHD: Tensor, key_MKD: Tensor, value_MKD: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """One part, `(out [N, H, D], lse [N, H])` as `AttentionKernel.forward` gives it; no keys weigh nothing (lse −∞).

    `causal` asks for N = M: kernels disagree about which corner of a rectangle the diagonal starts from.
    """
    assert not causal or len(query_NHD) == len(key_MKD), "a causal part is square"
    kernel, kv_heads = kernel_for(query_NHD), key_MKD.shape[1]
    if not len(key_MKD):
        precise = torch.promote_types(query_NHD.dtype, torch.float32)
        nothing_NH = torch.full(query_NHD.shape[:2], -torch.inf, dtype=precise, device=query_NHD.device)
        return torch.zeros_like(query_NHD), nothing_NH
    if causal:
        return kernel.forward(query_NHD, key_MKD, value_MKD, causal, scale)
    out, lse = kernel.forward(_fold(query_NHD, kv_heads), key_MKD, value_MKD, causal, scale)
    return _unfold(out, kv_heads, len(query_NHD)), _unfold(lse, kv_heads, len(query_NHD))


def partial_attention_backward(
    grad_NHD: Tensor,
    query_NHD: Tensor,
    key_MKD: Tensor,
    value_MKD: Tensor,
    out_NHD: Tensor,
    lse_NH: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One part's gradients of query, key and value; `out_NHD` and `lse_NH` are those of all parts together."""
    kernel, kv_heads = kernel_for(query_NHD), key_MKD.shape[1]
    if not len(key_MKD):
        return torch.zeros_like(query_NHD), torch.zeros_like(key_MKD), torch.zeros_like(value_MKD)
    if causal:
        return kernel.backward(grad_NHD, query_NHD, key_MKD, value_MKD, out_NHD, lse_NH, causal, scale)
    grad, query, out, lse = (_fold(tensor, kv_heads) for tensor in (grad_NHD, query_NHD, out_NHD, lse_NH))
    grad_q, grad_k, grad_v = kernel.backward(grad, query, key_MKD, value_MKD, out, lse, causal, scale)
    return _unfold(grad_q, kv_heads, len(query_NHD)), grad_k, grad_v


def _fold(rows: Tensor, kv_heads: int) -> Tensor:
    """[N, H, …] → [G·N, K, …]: without a mask, the G heads that read one key/value head are rows like any others.

    FlashAttention would expand its dK and dV to H heads: 1 GiB for 65,536 keys of a 7B model.
    """
    groups = rows.shape[1] // kv_heads
    return rows.unflatten(1, (kv_heads, groups)).movedim(2, 0).flatten(0, 1)


def _unfold(rows: Tensor, kv_heads: int, count: int) -> Tensor:
    """The inverse of `_fold` for N = `count`."""
    return rows.unflatten(0, (-1, count)).movedim(0, 2).flatten(1, 2)


def _heads_first(rows_NHD: Tensor) -> Tensor:
    return rows_NHD.transpose(0, 1).unsqueeze(0)


def _rows_first(heads_1HND: Tensor) -> Tensor:
    return heads_1HND.squeeze(0).transpose(0, 1)
