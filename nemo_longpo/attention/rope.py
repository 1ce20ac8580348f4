"""Rotary position embedding from explicit positions, plain or scaled as in long-context checkpoints.

The same settings as in Hugging Face give the same fp32 frequencies and angles, bit for bit. A checkpoint was trained
with one rounding; another one changes the angles at position 500,000 by hundredths of a radian. (Up to position 524,287
with D = 128, fp32 angles are off by at most 0.018 radians for θ = 1e7, 0.038 for 1e6; rounding the product alone costs
0.016. More precise arithmetic would be easy, but it would compute another model.)

Shape legend: S rows, D head size.
"""

import math

import torch

from nemo_longpo.model_directory.rope_settings import LinearScaling, Llama3Scaling, RopeSettings, YarnScaling


def inverse_frequencies(rope: RopeSettings, head_size: int) -> torch.Tensor:
    """Return the angles per position, fp32 [D/2]: θ^(−2i/D) for i = 0 … D/2 − 1 (arXiv 2104.09864), scaled."""
    match rope.scaling:
        case None:
            return 1.0 / _powers(head_size, rope.theta)
        case LinearScaling(factor):
            return 1.0 / _powers(head_size, rope.theta) / factor
        case YarnScaling():
            return _yarn_frequencies(rope.scaling, head_size, rope.theta)
        case Llama3Scaling():
            return _llama3_frequencies(rope.scaling, 1.0 / _powers(head_size, rope.theta))


def rotary_angles(position_ids_S: torch.Tensor, inverse_frequencies: torch.Tensor) -> torch.Tensor:
    """Return position · frequency for both halves of a head, fp32 [S, 1, 1, D]."""
    angles = torch.outer(position_ids_S.float(), inverse_frequencies.to(position_ids_S.device))
    return torch.cat([angles, angles], -1)[:, None, None]


def _powers(head_size: int, theta: float) -> torch.Tensor:
    """Return θ^(2i/D), fp32 [D/2]: positions per radian."""
    powers: torch.Tensor = theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    return powers


def _yarn_frequencies(scaling: YarnScaling, head_size: int, theta: float) -> torch.Tensor:
    def dimension(turns: float) -> float:
        """Return the dimension that makes this number of turns within the original length."""
        rows = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_size * math.log(rows) / (2 * math.log(theta))

    powers = _powers(head_size, theta)
    fast, slow = 1.0 / powers, 1.0 / (scaling.factor * powers)
    start, end = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, head_size - 1)
    span = end - start if end != start else 1e-3
    kept = 1 - ((torch.arange(head_size // 2, dtype=torch.float32) - start) / span).clamp(0, 1)
    return slow * (1 - kept) + fast * kept


def _llama3_frequencies(scaling: Llama3Scaling, fast: torch.Tensor) -> torch.Tensor:
    length, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / fast
    kept = (length / wavelengths - low) / (high - low)
    between = (1 - kept) * fast / scaling.factor + kept * fast
    stretched = torch.where(wavelengths > length / low, fast / scaling.factor, between)
    return torch.where(wavelengths < length / high, fast, stretched)
