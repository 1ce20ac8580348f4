"""Tensors on a simulated GPU: shapes, types and devices by the rules of torch's kernels, without data."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within it, `device="cuda"` gives such tensors, whatever other tests have done to this process.

    A test that builds a strategy switches the CPU backend on, which would answer "cuda" with the CPU.
    """
    with torch._C.DisableTorchFunction(), FakeTensorMode():
        yield
