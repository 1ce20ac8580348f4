"""Two models' tensors, compared one by one. In memory: one piece of each side, and blocks of it in fp32."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..model_on_disk import ModelOnDisk
from ..tensor_values import BLOCK, dtype_name

Verdict = Literal["exact", "rounded", "different", "only in A", "only in B"]

_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, kw_only=True)
class TensorComparison:
    """How the two sides of one tensor differ.

    `exact`: the same bits, or the same numbers in another dtype. `rounded`: the same once the wider dtype is rounded to
    the narrower. Otherwise `differing` of `values` are unlike, by at most `largest` = max |a − b| over finite numbers,
    which is `relative` to max |a|. `not_finite` counts NaN and infinities on either side. `reordered`: both sides hold
    the same values in another order, so rows or axes were exchanged.
    """

    name: str
    layer: int | None
    verdict: Verdict
    dtypes: tuple[str | None, str | None] = (None, None)
    shapes: tuple[list[int] | None, list[int] | None]
    values: int = 0
    differing: int = 0
    largest: float = 0.0
    relative: float = 0.0
    not_finite: int = 0
    reordered: bool = False


def compare_models(a: ModelOnDisk, b: ModelOnDisk) -> Iterator[TensorComparison]:
    """Compare every tensor of both, each under its Hugging Face name."""
    theirs = {tuple(piece.names): piece for piece in b.family.pieces(b.model_shape)}
    for piece in a.family.pieces(a.model_shape):
        partner = theirs.pop(tuple(piece.names), None)
        if partner is None:
            for name, shape in zip(piece.names, piece.part_shapes, strict=True):
                yield TensorComparison(name=name, layer=piece.layer, verdict="only in A", shapes=(list(shape), None))
            continue
        for name, ours, other in zip(piece.names, a.weights.parts(piece), b.weights.parts(partner), strict=True):
            yield compare_tensors(name, piece.layer, ours, other)
    for piece in theirs.values():
        for name, shape in zip(piece.names, piece.part_shapes, strict=True):
            yield TensorComparison(name=name, layer=piece.layer, verdict="only in B", shapes=(None, list(shape)))


def compare_tensors(name: str, layer: int | None, a: torch.Tensor, b: torch.Tensor) -> TensorComparison:
    """Compare two tensors bit by bit, and as numbers where their bits differ; `layer` is only passed on."""
    same = TensorComparison(
        name=name,
        layer=layer,
        verdict="exact",
        dtypes=(dtype_name(a.dtype), dtype_name(b.dtype)),
        shapes=(list(a.shape), list(b.shape)),
        values=a.numel(),
    )
    if a.shape != b.shape:
        return replace(same, verdict="different", values=0)
    if a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)):
        return replace(same, not_finite=sum(int((~block.isfinite()).sum()) for block in a.flatten().split(BLOCK)))
    unlike_a = unlike_b = not_finite = 0
    largest = scale = 0.0
    for x, y in zip(a.flatten().split(BLOCK), b.flatten().split(BLOCK), strict=True):
        # A number that became infinite was not rounded.
        overflown = x.isfinite() != y.isfinite()
        unlike_b += int((_unlike(x.to(y.dtype), y) | overflown).sum())
        unlike_a += int((_unlike(x, y.to(x.dtype)) | overflown).sum())
        finite = x.isfinite() & y.isfinite()
        not_finite += int((~finite).sum())
        x, y = x[finite].float(), y[finite].float()
        if x.numel():
            largest = max(largest, float((x - y).abs().max()))
            scale = max(scale, float(x.abs().max()))
    # The narrower dtype is not always known: bfloat16 and float16 can each be made from the other.
    differing = min(unlike_a, unlike_b)
    return replace(
        same,
        verdict="different" if differing else "rounded" if unlike_a or unlike_b else "exact",
        differing=differing,
        largest=largest,
        relative=largest / scale if scale else largest,
        not_finite=not_finite,
        reordered=bool(differing) and a.dtype == b.dtype and _checksum(a) == _checksum(b),
    )


def _unlike(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Where two tensors of one dtype have other bits; all NaN count as alike."""
    return (_bits(x) != _bits(y)) & ~(x.isnan() & y.isnan())


def _checksum(tensor: torch.Tensor) -> int:
    """Σ bits³ modulo 2⁶⁴ over the values: the same for every order of them."""
    return sum(int((_bits(block).long() ** 3).sum()) for block in tensor.flatten().split(BLOCK)) % 2**64


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_BITS[tensor.dtype.itemsize])
