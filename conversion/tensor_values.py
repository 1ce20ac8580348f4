"""Find NaN and infinities at the speed of reading, and refuse to make infinities of numbers."""

import torch

from nemo_longpo.errors import InputError

BLOCK = 1 << 22
"""Values that are compared one by one at once."""


def dtype_name(dtype: object) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def is_finite(tensor: torch.Tensor) -> bool:
    """True if no value is NaN or infinite. One pass without a copy: `aminmax` passes NaN on."""
    return not tensor.numel() or all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))


def to_dtype(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """The tensor in another dtype. Raises InputError if that makes an infinity of a number."""
    converted = tensor.to(dtype)
    if dtype == tensor.dtype or is_finite(converted):
        return converted
    for before, after in zip(tensor.flatten().split(BLOCK), converted.flatten().split(BLOCK), strict=True):
        lost = before[before.isfinite() & after.isinf()]
        if lost.numel():
            raise InputError(
                f"tensor {name} holds {float(lost[0]):g}, and {dtype_name(dtype)} ends at "
                f"{torch.finfo(dtype).max:g}; export with --dtype bfloat16, or float32"
            )
    return converted


class NotFinite:
    """Names of tensors with NaN or infinities, in the order in which they were looked at; several threads may look."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def look_at(self, name: str, tensor: torch.Tensor) -> None:
        if not is_finite(tensor):
            self.names.append(name)

    def __str__(self) -> str:
        """What was found, as a sentence; empty if all values are finite."""
        if not self.names:
            return ""
        others = f" and {len(self.names) - 1} more" if self.names[1:] else ""
        return f"NaN or infinities in tensor {min(self.names)}{others}; such a model answers with NaN"
