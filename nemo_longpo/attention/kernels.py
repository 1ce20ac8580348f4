"""Partial attention with its log-sum-exp; parts over disjoint keys can be merged exactly.

A part covers some keys: `out = softmax(scale · q kᵀ) v` over them, and `lse = log Σ exp(scale · q kᵀ)`. Parts over
disjoint keys merge by their weights `exp(lse)`. The backward takes the *merged* out and lse: then it recomputes the
probabilities of the whole row, and the gradients of the parts add up.

A kernel is a pair of functions for one device. They take any G and at least one key; the forward returns `out`
[N, H, D] in the query's dtype and `lse` [N, H], natural logarithm, in fp32 (fp64 for fp64).

Shape legend: N query rows, M key rows, H query heads, K key/value heads, G = H / K query heads that share one, D head
size.
"""

import torch
from torch import Tensor

from nemo_longpo.errors import InputError

aten = torch.ops.aten


def partial_attention(
    query_NHD: Tensor, key_MKD: Tensor, value_MKD: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return one part, `(out [N, H, D], lse [N, H])`; without keys its weight is 0 (lse −∞).

    `causal` requires N = M: kernels disagree about which corner of a rectangle the diagonal starts from.
    """
    assert not causal or len(query_NHD) == len(key_MKD), "a causal part is square"
    forward, kv_heads = (cuda_forward if _is_on_cuda(query_NHD) else cpu_forward), key_MKD.shape[1]
    if not len(key_MKD):
        precise = torch.promote_types(query_NHD.dtype, torch.float32)
        nothing_NH = torch.full(query_NHD.shape[:2], -torch.inf, dtype=precise, device=query_NHD.device)
        return torch.zeros_like(query_NHD), nothing_NH
    if causal:
        return forward(query_NHD, key_MKD, value_MKD, causal, scale)
    out, lse = forward(_fold(query_NHD, kv_heads), key_MKD, value_MKD, causal, scale)
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
    """Return one part's gradients of query, key and value; `out_NHD` and `lse_NH` are those of all parts merged."""
    backward, kv_heads = (cuda_backward if _is_on_cuda(query_NHD) else cpu_backward), key_MKD.shape[1]
    if not len(key_MKD):
        return torch.zeros_like(query_NHD), torch.zeros_like(key_MKD), torch.zeros_like(value_MKD)
    if causal:
        return backward(grad_NHD, query_NHD, key_MKD, value_MKD, out_NHD, lse_NH, causal, scale)
    grad, query, out, lse = (_fold(tensor, kv_heads) for tensor in (grad_NHD, query_NHD, out_NHD, lse_NH))
    grad_q, grad_k, grad_v = backward(grad, query, key_MKD, value_MKD, out, lse, causal, scale)
    return _unfold(grad_q, kv_heads, len(query_NHD)), grad_k, grad_v


Three = tuple[Tensor, Tensor, Tensor]


def cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """torch's flash attention for the CPU; G > 1 with `causal` from torch 2.13 on."""
    heads_first = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(*heads_first, 0.0, causal, scale=scale)
    return out[0].transpose(0, 1), lse[0].T


def cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Three:
    grad, q, k, v, out = (tensor.transpose(0, 1)[None] for tensor in (grad, q, k, v, out))
    gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad.contiguous(), q, k, v, out.contiguous(), lse.T[None].contiguous(), 0.0, causal, scale=scale
    )
    grad_q, grad_k, grad_v = (gradient[0].transpose(0, 1) for gradient in gradients)
    return grad_q, grad_k, grad_v


def cuda_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 as torch ships it: bf16 or fp16, D a multiple of 8 and at most 256."""
    batch_of_one = (tensor.unsqueeze(0) for tensor in (q, k, v))
    out, lse, *_ = aten._flash_attention_forward(
        *batch_of_one, None, None, len(q), len(k), 0.0, causal, False, scale=scale
    )
    return out.squeeze(0), lse.squeeze(0).T


def cuda_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Three:
    # Only dropout reads the random generator's state, but the signature requires it and a tensor that is never used.
    generator, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    batch_of_one = (tensor.unsqueeze(0) for tensor in (grad, q, k, v, out, lse.T.contiguous()))
    grad_q, grad_k, grad_v = aten._flash_attention_backward(
        *batch_of_one, None, None, len(q), len(k), 0.0, causal, generator, unused, scale=scale
    )
    return grad_q.squeeze(0), grad_k.squeeze(0), grad_v.squeeze(0)


def _is_on_cuda(query: Tensor) -> bool:
    """Return whether the query is on a GPU. Raises InputError if it is in a dtype that FlashAttention does not take."""
    if query.is_cuda and query.dtype not in (torch.bfloat16, torch.float16):
        raise InputError(
            f"attention over a shared prefix on a GPU takes bf16 or fp16, not {query.dtype}; "
            "set trainer.plugins.precision=bf16-mixed and optim.config.bf16=true, or model.pair_layout=concatenated"
        )
    return query.is_cuda


def _fold(rows: Tensor, kv_heads: int) -> Tensor:
    """[N, H, …] → [G·N, K, …]: without a mask, the G heads of one key/value head can be treated as more rows.

    FlashAttention would expand dK and dV to H heads: 1 GiB for 65,536 keys of a 7B model.
    """
    groups = rows.shape[1] // kv_heads
    return torch.unflatten(rows, 1, (kv_heads, groups)).movedim(2, 0).flatten(0, 1)


def _unfold(rows: Tensor, kv_heads: int, count: int) -> Tensor:
    """The inverse of `_fold` for N = `count`."""
    return torch.unflatten(rows, 0, (-1, count)).movedim(0, 2).flatten(1, 2)
