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

A short prompt with its two answers (lengths as of a pair: prompt, chosen, rejected) costs as much as a pair of its own
lengths, but for the output layer, which scores the answers alone.
"""

from collections.abc import Sequence

from nemo_longpo.placement import PairLayout

from .model_shape import ModelShape

BACKWARD = 2
"""Backward operations per forward one: the gradient of the input and that of the weight or the other operand."""


def linear_flops(shape: ModelShape, rows: float) -> float:
    """Count the forward through the matrices of all layers."""
    return 2 * shape.layers * shape.layer_matrices * rows


def causal_flops(shape: ModelShape, rows: float) -> float:
    """Count the forward of causal attention in all layers: scores and weighted values."""
    return 2 * shape.layers * shape.query_size * rows**2


def output_flops(shape: ModelShape, rows: float) -> float:
    """Count the forward of the output layer for rows whose log-probs are wanted."""
    return 2 * shape.table * rows


Lengths = tuple[int, int, int]


def layers_flops(
    shape: ModelShape,
    trunk: float,
    chosen: float,
    rejected: float,
    layout: PairLayout = "shared_prefix",
    short: Sequence[Lengths] = (),
) -> float:
    """Count the forward of all layers for one pair and its short prompts; lengths in tokens. See the table above."""
    return sum(_tree_flops(shape, *lengths, layout) for lengths in ((trunk, chosen, rejected), *short))


def _tree_flops(shape: ModelShape, trunk: float, chosen: float, rejected: float, layout: PairLayout) -> float:
    branches = chosen, rejected
    if layout == "concatenated":
        return sum(linear_flops(shape, trunk + rows) + causal_flops(shape, trunk + rows) for rows in branches)
    across = 4 * shape.layers * shape.query_size * trunk
    behind = sum(across * rows + causal_flops(shape, rows) for rows in branches)
    return linear_flops(shape, trunk + chosen + rejected) + causal_flops(shape, trunk) + behind


def scored_rows(trunk: float, chosen: float, rejected: float, short: Sequence[Lengths] = ()) -> float:
    """Count the rows whose log-probs are wanted, in both layouts."""
    return trunk + chosen + rejected + sum(first + second for _, first, second in short)


def forward_flops(
    shape: ModelShape,
    trunk: float,
    chosen: float,
    rejected: float,
    layout: PairLayout = "shared_prefix",
    short: Sequence[Lengths] = (),
) -> float:
    """Count the forward of one pair: layers and output layer; lengths in tokens."""
    scored = output_flops(shape, scored_rows(trunk, chosen, rejected, short))
    return layers_flops(shape, trunk, chosen, rejected, layout, short) + scored


def training_flops(
    shape: ModelShape,
    trunk: float,
    chosen: float,
    rejected: float,
    layout: PairLayout = "shared_prefix",
    short: Sequence[Lengths] = (),
) -> float:
    """Count forward and backward of one pair: three forwards, without recompute. Utilisation is measured by it."""
    return (1 + BACKWARD) * forward_flops(shape, trunk, chosen, rejected, layout, short)


def executed_flops(
    shape: ModelShape,
    trunk: float,
    chosen: float,
    rejected: float,
    layout: PairLayout = "shared_prefix",
    short: Sequence[Lengths] = (),
    recomputed: float = 0.0,
) -> float:
    """Count what the device does: `recomputed` (0 to 1) of the layers' forward again, and the logits once more.

    The log-probs never keep logits, so their backward forms them a second time.
    """
    again = recomputed * layers_flops(shape, trunk, chosen, rejected, layout, short)
    logits = output_flops(shape, scored_rows(trunk, chosen, rejected, short))
    return training_flops(shape, trunk, chosen, rejected, layout, short) + again + logits
