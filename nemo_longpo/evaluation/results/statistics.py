"""Means of scores, means of such means, and differences of two models on the same questions, with their uncertainty.

Questions count as independent draws, also several about one book. Intervals are those of the normal distribution.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""Standard errors in half of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` questions. One question alone says nothing about its own spread: then there is no error."""

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


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, and s / √n with s² = Σ(x - mean)² / (n - 1); at least one value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, None, n)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, math.sqrt(variance / n), n)


def paired(before: Mapping[Hashable, float], after: Mapping[Hashable, float]) -> Estimate | None:
    """The mean of after - before over the questions that both have, None without any.

    A question that both answer alike adds nothing to the spread, so this interval is narrower than that of two
    independent means.
    """
    both = [after[key] - before[key] for key in before if key in after]
    return estimate(both) if both else None


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
