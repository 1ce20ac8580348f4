"""Two models' tensors, compared one by one. In memory: one piece of each side, and blocks of it in fp32."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..families.family import Piece
from ..model_on_disk import ModelOnDisk
from ..values import BLOCK

Verdict = Literal["exact", "rounded", "different", "only in A", "only in B"]

_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class TensorComparison:
    """What became of one tensor.

    `exact`: the same bits, or the same numbers in another dtype. `rounded`: the same once the wider dtype is rounded to
    the narrower. Otherwise `differing` of `values` are unlike, by at most `largest` = max |a − b| over finite numbers,
    which is `relative` to max |a|. `not_finite` counts NaN and infinities on either side. `reordered`: both sides hold
    the same values in another order, so rows or axes were exchanged.
    """

    name: str
    layer: int | None
    verdict: Verdict
    dtypes: tuple[str | None, str | None]
    shapes: tuple[list[int] | None, list[int] | None]
    values: int = 0
    differing: int = 0
    largest: float = 0.0
    relative: float = 0.0
    not_finite: int = 0
    reordered: bool = False

    @property
    def same(self) -> bool:
        return self.verdict in ("exact", "rounded")


def compare_models(
    a: ModelOnDisk, b: ModelOnDisk, advance: Callable[[], object] = lambda: None
) -> Iterator[TensorComparison]:
    """Every tensor of both, each under its Hugging Face name. `advance` is called once per tensor."""
    theirs = {tuple(piece.names): piece for piece in b.family.pieces(b.geometry)}
    for piece in a.family.pieces(a.geometry):
        partner = theirs.pop(tuple(piece.names), None)
        compared = _one_sided(piece, "only in A") if partner is None else _compare_piece(a, piece, b, partner)
        for comparison in compared:
            advance()
            yield comparison
    for piece in theirs.values():
        yield from _one_sided(piece, "only in B")


def _one_sided(piece: Piece, verdict: Literal["only in A", "only in B"]) -> Iterator[TensorComparison]:
    for name, shape in zip(piece.names, piece.part_shapes, strict=True):
        shapes = (list(shape), None) if verdict == "only in A" else (None, list(shape))
        yield TensorComparison(name, piece.layer, verdict, (None, None), shapes)


def _compare_piece(a: ModelOnDisk, piece: Piece, b: ModelOnDisk, partner: Piece) -> Iterator[TensorComparison]:
    parts = zip(piece.names, a.weights.parts(piece), b.weights.parts(partner), strict=True)
    for name, mine, other in parts:
        yield compare_tensors(name, piece.layer, mine, other)


def compare_tensors(name: str, layer: int | None, a: Tensor, b: Tensor) -> TensorComparison:
    dtypes = (_dtype_name(a), _dtype_name(b))
    shapes = (list(a.shape), list(b.shape))
    if a.shape != b.shape:
        return TensorComparison(name, layer, "different", dtypes, shapes)
    if a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)):
        not_finite = sum(int((~block.isfinite()).sum()) for block in a.flatten().split(BLOCK))
        return TensorComparison(name, layer, "exact", dtypes, shapes, a.numel(), not_finite=not_finite)
    return _measure(name, layer, a, b)


def _measure(name: str, layer: int | None, a: Tensor, b: Tensor) -> TensorComparison:
    """As exact, rounded or different, with how much and how many."""
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
    verdict: Verdict = "different" if differing else "rounded" if unlike_a or unlike_b else "exact"
    return TensorComparison(
        name,
        layer,
        verdict,
        (_dtype_name(a), _dtype_name(b)),
        (list(a.shape), list(b.shape)),
        a.numel(),
        differing,
        largest,
        largest / scale if scale else largest,
        not_finite,
        bool(differing) and a.dtype == b.dtype and _checksum(a) == _checksum(b),
    )


def _unlike(x: Tensor, y: Tensor) -> Tensor:
    """Of one dtype: other bits, where any NaN is like any other."""
    return (_bits(x) != _bits(y)) & ~(x.isnan() & y.isnan())


def _checksum(tensor: Tensor) -> int:
    """Of the values' bits, the same for every order of them: Σ bits³ modulo 2⁶⁴."""
    return sum(int((_bits(block).long() ** 3).sum()) for block in tensor.flatten().split(BLOCK)) % 2**64


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_BITS[tensor.dtype.itemsize])


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
