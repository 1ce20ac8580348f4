"""What a tile of logits becomes, in one pass on a GPU; `logprobs` computes the same with torch alone in several.

Needs Triton, which torch for CUDA brings along on Linux. Kernels here are called through `summary` and `gradient`.

Shape legend: n rows of a tile, P its columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 4096  # of a row that one program holds at once


def summary(logits_nP: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: the largest logit, the label's (−inf if it is no column), and the sum of exp(logit − largest)."""
    found = logits_nP.new_empty(3, len(logits_nP))
    _summary[(len(logits_nP),)](logits_nP, labels_n, found, *logits_nP.shape, COLUMNS, num_warps=8)
    maximum, picked, total = found
    return maximum, picked, total


def gradient(logits_nP: Tensor, labels_n: Tensor, logsumexp_n: Tensor, grad_n: Tensor, dtype: torch.dtype) -> Tensor:
    """`(onehot(label) − exp(logit − logsumexp)) · grad`, [n, P], rounded to `dtype`."""
    rows, columns = logits_nP.shape
    found = torch.empty_like(logits_nP, dtype=dtype)
    grid = rows, triton.cdiv(columns, COLUMNS)
    _gradient[grid](logits_nP, labels_n, logsumexp_n, grad_n, found, columns, COLUMNS, num_warps=8)
    return found


@triton.jit
def _summary(logits, labels, found, rows, columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * columns
    maximum, total = float("-inf"), 0.0
    for start in range(0, columns, COLUMNS):
        places = start + tl.arange(0, COLUMNS)
        values = tl.load(logits + places, mask=places < columns, other=float("-inf"))
        larger = tl.maximum(maximum, tl.max(values, 0))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(values - larger), 0)
        maximum = larger
    label = tl.load(labels + row)
    picked = tl.load(logits + label, mask=(label >= 0) & (label < columns), other=float("-inf"))
    tl.store(found + row, maximum)
    tl.store(found + rows + row, picked)
    tl.store(found + 2 * rows + row, total)


@triton.jit
def _gradient(logits, labels, logsumexp, grad, found, columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = places < columns
    scale = tl.load(grad + row)
    probability = tl.exp(tl.load(logits + row * columns + places, mask=inside) - tl.load(logsumexp + row))
    value = (tl.where(places == tl.load(labels + row), 1.0, 0.0) - probability) * scale
    tl.store(found + row * columns + places, value.to(found.dtype.element_ty), mask=inside)
