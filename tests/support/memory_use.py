"""How much memory a piece of work needs, by torch's own record of what it allocates and frees; how much it copies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode


def peak_bytes(work: Callable[[], None]) -> int:
    """Return the peak of torch's allocated memory above its start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([size for _, size in changes]).max())


# What writes values that are somewhere else already, or none yet.
COPIES = ("cat", "clone", "copy_", "_to_copy", "index", "index_put_", "index_select", "gather", "stack")
FILLS = ("zeros", "zeros_like", "new_zeros", "full_like", "new_full", "fill_", "zero_")
WHOLE_GRADIENTS = ("slice_backward", "select_backward")


class BytesWritten(TorchDispatchMode):
    """While it is active, notes of torch's operators that copy, fill or add how often each ran and what it wrote.

    Operators of `aten` are seen as the backend gets them, below autograd. Nothing inside `paused()` is noted.
    """

    def __init__(self, operators: tuple[str, ...] = (*COPIES, *FILLS, *WHOLE_GRADIENTS, "add", "add_")):
        super().__init__()
        self.operators = operators
        self.found: dict[str, tuple[int, int]] = {}
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        yield
        self._paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in self.operators and not self._paused:
            times, size = self.found.get(name, (0, 0))
            self.found[name] = times + 1, size + result.nbytes
        return result
