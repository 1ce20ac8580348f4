"""Floating-point operations of a pair, counted from the model's matrices and the rows that meet in attention.

A multiplication and the addition behind it are two operations. Norms, activations and rotary embedding are left out:
below 1 % for models of this kind. With P = weights of one layer's matrices, A = query columns (heads · head size), per
layer:

    linear(r)       = 2 · P · r                 r rows
    causal(r)       = 4 · A · r² / 2            each row meets the half of the rows before it
    across(n, m)    = 4 · A · n · m             n rows that all meet m others

| layout          | forward of all layers, trunk T, branches n₁ and n₂                               |
|-----------------|----------------------------------------------------------------------------------|
| `concatenated`  | Σᵢ linear(T + nᵢ) + causal(T + nᵢ)                                               |
| `shared_prefix` | linear(T + n₁ + n₂) + causal(T) + Σᵢ across(nᵢ, T) + causal(nᵢ)                  |

The output layer scores the same rows in both: the chosen sequence and the rejected branch.

A short prompt with its two answers costs as much as a pair of its own lengths, but for the output layer, which scores
the answers alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nemo_longpo.placement import PairLayout

from .model_shape import ModelShape

BACKWARD = 2
"""Backward operations per forward one: the gradient of the input and that of the weight or the other operand."""

Lengths = tuple[int, int, int]
"""Tokens of a trunk and of the two branches behind it."""


@dataclass(frozen=True)
class PairLengths:
    """Tokens of a pair: its trunk and both branches, and prompt, chosen and rejected answer of each short prompt."""

    trunk: int
    chosen: int
    rejected: int
    short: Sequence[Lengths] = ()

    @property
    def trees(self) -> tuple[Lengths, ...]:
        """Everything that attention sees apart: the document first, then each short prompt."""
        return (self.trunk, self.chosen, self.rejected), *self.short

    @property
    def tokens(self) -> int:
        """Every trunk once, and all branches."""
        return sum(map(sum, self.trees))

    @property
    def scored(self) -> int:
        """Rows whose log-probs are wanted, in both layouts."""
        return self.trunk + self.chosen + self.rejected + sum(first + second for _, first, second in self.short)


def linear_flops(shape: ModelShape, rows: float) -> float:
    """Count the forward through the matrices of all layers."""
    return 2 * shape.layers * shape.layer_matrices * rows


def causal_flops(shape: ModelShape, rows: float) -> float:
    """Count the forward of causal attention in all layers: scores and weighted values."""
    return 2 * shape.layers * shape.query_size * rows**2


def output_flops(shape: ModelShape, rows: float) -> float:
    """Count the forward of the output layer for rows whose log-probs are wanted."""
    return 2 * shape.table * rows


@dataclass(frozen=True)
class LayersFlops:
    """The forward of all layers by the kernels that run it: matrices, attention of trunks (of whole sequences where
    they are concatenated), attention of branches.
    """

    linear: float
    trunk: float
    branches: float

    @property
    def total(self) -> float:
        return self.linear + self.trunk + self.branches


def layers_by_part(shape: ModelShape, pair: PairLengths, layout: PairLayout = "shared_prefix") -> LayersFlops:
    """Count the forward of all layers for one pair and its short prompts. See the table above."""
    linear, trunks, branches = (sum(part) for part in zip(*_parts(shape, pair, layout), strict=True))
    return LayersFlops(linear, trunks, branches)


def _parts(shape: ModelShape, pair: PairLengths, layout: PairLayout) -> Iterator[tuple[float, float, float]]:
    for trunk, *answers in pair.trees:
        if layout == "concatenated":
            for rows in answers:
                yield linear_flops(shape, trunk + rows), causal_flops(shape, trunk + rows), 0.0
        else:
            across = 4 * shape.layers * shape.query_size * trunk
            behind = sum(across * rows + causal_flops(shape, rows) for rows in answers)
            yield linear_flops(shape, trunk + sum(answers)), causal_flops(shape, trunk), behind


def layers_flops(shape: ModelShape, pair: PairLengths, layout: PairLayout = "shared_prefix") -> float:
    """Count the forward of all layers for one pair and its short prompts."""
    return layers_by_part(shape, pair, layout).total


def forward_flops(shape: ModelShape, pair: PairLengths, layout: PairLayout = "shared_prefix") -> float:
    """Count the forward of one pair: layers and output layer."""
    return layers_flops(shape, pair, layout) + output_flops(shape, pair.scored)


def training_flops(shape: ModelShape, pair: PairLengths, layout: PairLayout = "shared_prefix") -> float:
    """Count forward and backward of one pair: three forwards, without recompute. Utilisation is measured by it."""
    return (1 + BACKWARD) * forward_flops(shape, pair, layout)


@dataclass(frozen=True)
class Recomputed:
    """Shares (0 to 1) of the layers' forward that run a second time: matrices, attention."""

    linear: float = 0.0
    attention: float = 0.0


def executed_flops(
    shape: ModelShape,
    pair: PairLengths,
    layout: PairLayout = "shared_prefix",
    again: Recomputed = Recomputed(),
) -> float:
    """Count what the device does: what is recomputed of the layers' forward, and the logits once more.

    The log-probs never keep logits, so their backward forms them a second time.
    """
    forward = layers_by_part(shape, pair, layout)
    layers = again.linear * forward.linear + again.attention * (forward.trunk + forward.branches)
    return training_flops(shape, pair, layout) + layers + output_flops(shape, pair.scored)
