"""Partial attention with its log-sum-exp; parts over disjoint keys can be merged exactly.

A part covers some keys: `out = softmax(scale · q kᵀ) v` over them, and `lse = log Σ exp(scale · q kᵀ)`. Parts over
disjoint keys merge by their weights `exp(lse)`. The backward takes the *merged* out and lse: then it recomputes the
probabilities of the whole row, and the gradients of the parts add up.

A `Kernel` is a pair of functions for one kind of device. They take any G and at least one key; the forward returns
`out` [N, H, D] in the query's dtype and `lse` [N, H], natural logarithm, in fp32 (fp64 for fp64).

Shape legend: N query rows, M key rows, H query heads, K key/value heads, G = H / K query heads that share one, D head
size.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_longpo.errors import InputError

aten = torch.ops.aten
Three = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Kernel:
    """`forward(q, k, v, causal, scale) → (out, lse)` and `backward(grad, q, k, v, out, lse, causal, scale) → (dQ, dK,
    dV)`. One that folds gets grouped heads without a mask as more rows, see `_fold`.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., Three]
    folds_forward: bool = True
    folds_backward: bool = True


def partial_attention(
    query_NHD: Tensor, key_MKD: Tensor, value_MKD: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return one part, `(out [N, H, D], lse [N, H])`; without keys its weight is 0 (lse −∞).

    `causal` requires N = M: kernels disagree about which corner of a rectangle the diagonal starts from.
    """
    assert not causal or len(query_NHD) == len(key_MKD), "a causal part is square"
    if not len(key_MKD):
        precise = torch.promote_types(query_NHD.dtype, torch.float32)
        nothing_NH = torch.full(query_NHD.shape[:2], -torch.inf, dtype=precise, device=query_NHD.device)
        return torch.zeros_like(query_NHD), nothing_NH
    kernel, kv_heads = kernel_for(query_NHD, key_MKD), key_MKD.shape[1]
    if causal or not kernel.folds_forward:
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
) -> Three:
    """Return one part's gradients of query, key and value; `out_NHD` and `lse_NH` are those of all parts merged."""
    if not len(key_MKD):
        return torch.zeros_like(query_NHD), torch.zeros_like(key_MKD), torch.zeros_like(value_MKD)
    kernel, kv_heads = kernel_for(query_NHD, key_MKD), key_MKD.shape[1]
    if causal or not kernel.folds_backward:
        return kernel.backward(grad_NHD, query_NHD, key_MKD, value_MKD, out_NHD, lse_NH, causal, scale)
    grad, query, out, lse = (_fold(tensor, kv_heads) for tensor in (grad_NHD, query_NHD, out_NHD, lse_NH))
    grad_q, grad_k, grad_v = kernel.backward(grad, query, key_MKD, value_MKD, out, lse, causal, scale)
    return _unfold(grad_q, kv_heads, len(query_NHD)), grad_k, grad_v


def kernel_for(query_NHD: Tensor, key_MKD: Tensor) -> Kernel:
    """Choose by device and size. Raises InputError if a query on a GPU is in a dtype that no kernel there takes."""
    if not query_NHD.is_cuda:
        return CPU
    if query_NHD.dtype not in (torch.bfloat16, torch.float16):
        raise InputError(
            f"attention over a shared prefix on a GPU takes bf16 or fp16, not {query_NHD.dtype}; "
            "set trainer.plugins.precision=bf16-mixed and optim.config.bf16=true, or model.pair_layout=concatenated"
        )
    size = len(query_NHD), len(key_MKD)
    if size[0] * size[1] < FEWEST_SCORES_FOR_CUDNN or (size not in _planned and len(_planned) == MOST_PLANS):
        return FLASH_2
    if cudnn_lse_shape(query_NHD.device, query_NHD.dtype, query_NHD.shape[2]) is None:
        return FLASH_2
    _planned.add(size)
    return CUDNN


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


def flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 as torch ships it: bf16 or fp16, D a multiple of 8 and at most 256."""
    batch_of_one = (tensor.unsqueeze(0) for tensor in (q, k, v))
    out, lse, *_ = aten._flash_attention_forward(
        *batch_of_one, None, None, len(q), len(k), 0.0, causal, False, scale=scale
    )
    return out.squeeze(0), lse.squeeze(0).T


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Three:
    # Only dropout reads the random generator's state, but the signature requires it and a tensor that is never used.
    generator, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    batch_of_one = (tensor.unsqueeze(0) for tensor in (grad, q, k, v, out, lse.T.contiguous()))
    grad_q, grad_k, grad_v = aten._flash_attention_backward(
        *batch_of_one, None, None, len(q), len(k), 0.0, causal, generator, unused, scale=scale
    )
    return grad_q.squeeze(0), grad_k.squeeze(0), grad_v.squeeze(0)


CUDNN_FROM_CAPABILITY = (9, 0)
# Rows times keys. For every new size cuDNN first makes a plan, on an H200 in 60 ms forward and 73 ms backward; over the
# 32 layers of a 7B model it saves that much from about 4e7 on.
FEWEST_SCORES_FOR_CUDNN = 2**26
# torch forgets no plan, and the two of a size take 3 MB of host memory: 6 GB.
MOST_PLANS = 2000
_planned: set[tuple[int, int]] = set()


def cudnn_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """cuDNN's fused attention as torch ships it: bf16 or fp16, any strides but a contiguous D, grouped heads."""
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(
        *map(_heads_first, (q, k, v)), None, True, 0.0, causal, False, scale=scale
    )
    return out.squeeze(0).transpose(0, 1), lse.view(q.shape[1], len(q)).T


def cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Three:
    # torch keeps cuDNN's plans by the strides of q, k and v alone: with other strides of the rest, a plan that was made
    # before would read the wrong elements. So the rest is always contiguous.
    rows = map(_heads_first, (grad.contiguous(), q, k, v, out.contiguous()))
    lse_shape = cudnn_lse_shape(q.device, q.dtype, q.shape[2])
    assert lse_shape is not None, "cuDNN was not chosen"
    lse = lse.T.contiguous().view(1, q.shape[1], len(q), *lse_shape)
    # Only dropout reads the random generator's state.
    unused = torch.zeros((), dtype=torch.int64, device=q.device)
    gradients = aten._scaled_dot_product_cudnn_attention_backward(
        *rows, lse, unused, unused, None, None, None, len(q), len(k), 0.0, causal, scale=scale
    )
    grad_q, grad_k, grad_v = (gradient.squeeze(0).transpose(0, 1) for gradient in gradients)
    return grad_q, grad_k, grad_v


@functools.cache
def cudnn_lse_shape(device: torch.device, dtype: torch.dtype, head_size: int) -> tuple[int, ...] | None:
    """Return what torch appends to [1, H, N] in the shape of cuDNN's lse, (1,) or (); None where cuDNN is no choice.

    That is below that compute capability, and where it refuses this head size; then it says so, once.
    """
    if torch.cuda.get_device_capability(device) < CUDNN_FROM_CAPABILITY:
        return None
    query = torch.zeros(65, 2, head_size, dtype=dtype, device=device)
    key = query.narrow(1, 0, 1)
    try:
        with torch.no_grad():
            _out, lse, *_ = aten._scaled_dot_product_cudnn_attention(
                *map(_heads_first, (query, key, key)), None, True, 0.0, True, False, scale=1.0
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as refusal:
        warnings.warn(
            f"cuDNN refused attention with head size {head_size} ({str(refusal).splitlines()[0]}); branches use "
            "FlashAttention-2, which takes about twice the time on this GPU",
            stacklevel=1,
        )
        return None
    return tuple(lse.shape[3:])


def _heads_first(rows: Tensor) -> Tensor:
    """[N, H, D] → [1, H, N, D], a view."""
    return rows.unsqueeze(0).transpose(1, 2)


CPU, FLASH_2 = Kernel(cpu_forward, cpu_backward), Kernel(flash_forward, flash_backward)
CUDNN = Kernel(cudnn_forward, cudnn_backward, folds_forward=False)


def _fold(rows: Tensor, kv_heads: int) -> Tensor:
    """[N, H, …] → [G·N, K, …]: without a mask, the G heads of one key/value head can be treated as more rows.

    In a backward, kernels would expand dK and dV to H heads, 1 GiB for 65,536 keys of a 7B model, and round each.
    """
    groups = rows.shape[1] // kv_heads
    return torch.unflatten(rows, 1, (kv_heads, groups)).movedim(2, 0).flatten(0, 1)


def _unfold(rows: Tensor, kv_heads: int, count: int) -> Tensor:
    """The inverse of `_fold` for N = `count`."""
    return torch.unflatten(rows, 0, (-1, count)).movedim(0, 2).flatten(1, 2)
