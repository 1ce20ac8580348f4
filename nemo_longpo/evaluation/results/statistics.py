"""Means of scores, means of such means, and differences of two models on the same questions, with their uncertainty.

Questions count as independent draws, but for those about one text. Intervals are those of the normal distribution.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""Standard errors in half of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` questions. One question, or one text, says nothing about the spread: then there is no error."""

    mean: float
    standard_error: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval, the number behind ±."""
        return None if self.standard_error is None else Z * self.standard_error

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width


def estimate(values: Sequence[float], texts: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of at least one value, and s / √n with s² = Σ(x - mean)² / (n - 1).

    `texts` names for each question the text that it is about. Questions about one text are no independent draws: then
    the G texts are, and the error is √(Σ_texts (Σ(x - mean))² · G / (G - 1)) / n, the same where each has its own.
    """
    n = len(values)
    mean = math.fsum(values) / n
    off: dict[Hashable, list[float]] = defaultdict(list)
    for value, text in zip(values, texts or range(n), strict=True):
        off[text].append(value - mean)
    if len(off) < 2:
        return Estimate(mean, None, n)
    squares = math.fsum(math.fsum(own) ** 2 for own in off.values())
    return Estimate(mean, math.sqrt(squares * len(off) / (len(off) - 1)) / n, n)


def paired(
    before: Mapping[Hashable, float], after: Mapping[Hashable, float], texts: Mapping[Hashable, Hashable] | None = None
) -> Estimate | None:
    """The mean of after - before over the questions that both have, None without any.

    A question that both answer alike adds nothing to the spread, so this interval is narrower than that of two
    independent means.
    """
    both = [key for key in before if key in after]
    changes = [after[key] - before[key] for key in both]
    return estimate(changes, [texts[key] for key in both] if texts else None) if both else None


def combine(parts: Iterable[tuple[float, Estimate]]) -> Estimate | None:
    """Σ w · mean with the error √Σ (w · error)² of independent parts, None without any; n is the sum."""
    weighed = list(parts)
    if not weighed:
        return None
    errors = [weight * own.standard_error for weight, own in weighed if own.standard_error is not None]
    return Estimate(
        math.fsum(weight * own.mean for weight, own in weighed),
        math.hypot(*errors) if len(errors) == len(weighed) else None,
        sum(own.n for _, own in weighed),
    )
