"""Rotary position embedding from explicit positions, plain or scaled as long-context checkpoints ask for.

Fields are named as in Hugging Face's `rope_scaling`, and the same settings give the same fp32 frequencies and angles,
bit for bit. A checkpoint was trained with one rounding; at position 500,000 another one turns angles by hundredths of a
radian. (Up to position 524,287 with D = 128, fp32 angles are off by at most 0.018 radians for θ = 1e7, 0.038 for 1e6;
rounding the product alone costs 0.016. More precise arithmetic would be easy, and would not be the model.)

Shape legend: S rows, D head size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_longpo.errors import InputError


def inverse_frequencies(head_size: int, theta: float) -> Tensor:
    """θ^(−2i/D) for i = 0 … D/2 − 1, fp32 [D/2]; arXiv 2104.09864."""
    return 1.0 / _powers(head_size, theta)


def rotary_angles(position_ids_S: Tensor, inverse_frequencies: Tensor) -> Tensor:
    """position · frequency for both halves of a head, fp32 [S, 1, 1, D]."""
    angles = torch.outer(position_ids_S.float(), inverse_frequencies.to(position_ids_S.device))
    return torch.cat([angles, angles], -1)[:, None, None]


@dataclass(frozen=True)
class LinearScaling:
    """All positions divided by `factor`; arXiv 2306.15595."""

    factor: float

    def __post_init__(self) -> None:
        _require_number("factor", self.factor, at_least=1)

    @property
    def magnitude(self) -> float:
        return 1.0

    def inverse_frequencies(self, head_size: int, theta: float) -> Tensor:
        return inverse_frequencies(head_size, theta) / self.factor


@dataclass(frozen=True)
class YarnScaling:
    """Fast frequencies stay, slow ones are divided by `factor`, with a ramp between; arXiv 2309.00071.

    A frequency is fast if it turns more than `beta_fast` times within the original length, and slow if it turns less
    than `beta_slow` times; `truncate` widens the ramp to whole dimensions. Queries and keys grow by `attention_factor`:
    by default `m(1)`, or `m(mscale) / m(mscale_all_dim)` where both are given, with `m(x) = 0.1 · x · ln(factor) + 1`.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        _require_number("factor", self.factor, at_least=1)
        _require_length("original_max_position_embeddings", self.original_max_position_embeddings)
        _require_number("beta_slow", self.beta_slow, above=0)
        _require_number("beta_fast", self.beta_fast, at_least=self.beta_slow)
        if not isinstance(self.truncate, bool):
            raise InputError(f"truncate is {self.truncate!r}, not true or false")
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                _require_number(name, getattr(self, name), above=0)

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is None or self.mscale_all_dim is None:
            return self._growth(1)
        return self._growth(self.mscale) / self._growth(self.mscale_all_dim)

    def _growth(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1.0

    def inverse_frequencies(self, head_size: int, theta: float) -> Tensor:
        powers = _powers(head_size, theta)
        fast, slow = 1.0 / powers, 1.0 / (self.factor * powers)
        start, end = (self._dimension(turns, head_size, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            start, end = math.floor(start), math.ceil(end)
        start, end = max(start, 0), min(end, head_size - 1)
        span = end - start if end != start else 1e-3
        kept = 1 - ((torch.arange(head_size // 2, dtype=torch.float32) - start) / span).clamp(0, 1)
        return slow * (1 - kept) + fast * kept

    def _dimension(self, turns: float, head_size: int, theta: float) -> float:
        """Which dimension turns so many times within the original length."""
        return (
            head_size * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))
        )


@dataclass(frozen=True)
class Llama3Scaling:
    """As YaRN divides slow frequencies alone, with the ramp over wavelengths and no change of queries and keys.

    Wavelengths below `L / high_freq_factor` stay and those above `L / low_freq_factor` are stretched by `factor`, for
    the original length L; Llama 3.1's model card and reference code.
    """

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float

    def __post_init__(self) -> None:
        _require_number("factor", self.factor, at_least=1)
        _require_length("original_max_position_embeddings", self.original_max_position_embeddings)
        _require_number("low_freq_factor", self.low_freq_factor, above=0)
        _require_number("high_freq_factor", self.high_freq_factor, above=self.low_freq_factor)

    @property
    def magnitude(self) -> float:
        return 1.0

    def inverse_frequencies(self, head_size: int, theta: float) -> Tensor:
        fast = inverse_frequencies(head_size, theta)
        length, low, high = self.original_max_position_embeddings, self.low_freq_factor, self.high_freq_factor
        wavelengths = 2 * math.pi / fast
        kept = (length / wavelengths - low) / (high - low)
        between = (1 - kept) * fast / self.factor + kept * fast
        stretched = torch.where(wavelengths > length / low, fast / self.factor, between)
        return torch.where(wavelengths < length / high, fast, stretched)


RopeScaling = LinearScaling | YarnScaling | Llama3Scaling


@dataclass(frozen=True)
class RopeSettings:
    """All that angles and scores need to know: the base θ, and the scaling, if any."""

    theta: float
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        _require_number("rope_theta", self.theta, above=1)

    def inverse_frequencies(self, head_size: int) -> Tensor:
        """What a position is multiplied with, fp32 [D/2]."""
        if self.scaling is None:
            return inverse_frequencies(head_size, self.theta)
        return self.scaling.inverse_frequencies(head_size, self.theta)

    @property
    def attention_factor(self) -> float:
        """a, by which rotated queries and keys are multiplied."""
        return 1.0 if self.scaling is None else self.scaling.magnitude

    def softmax_scale(self, head_size: int) -> float:
        """a² / √D: queries and keys need no factor of their own when the scores have it."""
        return self.attention_factor**2 * float(head_size**-0.5)


def _powers(head_size: int, theta: float) -> Tensor:
    """θ^(2i/D), fp32 [D/2]: positions per radian."""
    return theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)


def _require_number(name: str, value: object, *, at_least: float = -math.inf, above: float = -math.inf) -> None:
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not (number and value >= at_least and value > above):  # type: ignore[operator]
        wanted = f"above {above:g}" if above > -math.inf else f"of at least {at_least:g}"
        raise InputError(f"{name} is {value!r}; it must be a number {wanted}")


def _require_length(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number of positions")
