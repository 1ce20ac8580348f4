"""Rotary position embedding from explicit positions.

Shape legend: S rows, D head size.
"""

import torch
from torch import Tensor


def inverse_frequencies(head_size: int, theta: float) -> Tensor:
    """θ^(−2i/D) for i = 0 … D/2 − 1, fp32 [D/2]; arXiv 2104.09864."""
    return theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)


def rotary_angles(position_ids_S: Tensor, inverse_frequencies: Tensor) -> Tensor:
    """position · frequency for both halves of a head, fp32 [S, 1, 1, D]."""
    angles = torch.outer(position_ids_S.float(), inverse_frequencies.to(position_ids_S.device))
    return torch.cat([angles, angles], -1)[:, None, None]
