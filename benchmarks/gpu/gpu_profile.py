"""Where the time of a layer goes: kernels by what they do, from one profiled forward and backward."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from nemo_longpo.costs.model_shape import ModelShape

from .gpu_kernels import DTYPES
from .gpu_stack import Share, training_step

# In this order: attention kernels also name the instructions that multiply matrices, and kernels that copy are made of
# the same templates as kernels that compute.
GROUPS = {
    "attention": ("sdpa", "flash", "fmha", "attention"),
    "matrix products": ("gemm", "gemv", "nvjet", "cutlass", "wgmma", "addmm", "::mm", "::bmm"),
    "copies": (
        "copy",
        "memcpy",
        "memset",
        "catarray",
        "::cat",
        "clone",
        "contiguous",
        "fill",
        "zero",
        "index",
        "gather",
    ),
}
ELEMENT_WISE = "element-wise"  # activations, norms, sums, rotary embedding: whatever reads and writes each number
LARGEST = 15


def group_of(kernel: str) -> str:
    """What a kernel, or on the CPU an operator, does; by its name."""
    name = kernel.lower()
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), ELEMENT_WISE)


def kernels_of(work: Callable[[], object], device: str) -> list[tuple[str, float, int]]:
    """Name, seconds and calls of all kernels that `work` runs the second time, the longest first; on the CPU those of
    operators, without what they call."""
    work()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    if device == "cuda":
        found = [(e.key, e.self_device_time_total, e.count) for e in averages if e.device_type == DeviceType.CUDA]
    else:
        found = [(e.key, e.self_cpu_time_total, e.count) for e in averages if e.key.startswith("aten::")]
    return sorted(((name, time / 1e6, calls) for name, time, calls in found), key=lambda kernel: -kernel[1])


def shares_of(kernels: list[tuple[str, float, int]]) -> dict[str, float]:
    """Each group's share of all seconds."""
    total = sum(seconds for _, seconds, _ in kernels)
    groups = dict.fromkeys([*GROUPS, ELEMENT_WISE], 0.0)
    for name, seconds, _ in kernels:
        groups[group_of(name)] += seconds / total
    return groups


def profile_rows(shape: ModelShape, share: Share, layers: int, device: str) -> Iterator[dict[str, Any]]:
    """One row: forward and backward of some layers with recompute, without the output layer."""
    kernels = kernels_of(training_step(shape, share, layers, device, DTYPES[device]), device)
    yield {
        "layers": layers,
        "kernel_seconds": sum(seconds for _, seconds, _ in kernels),
        "shares": shares_of(kernels),
        "largest": [[name, group_of(name), seconds, calls] for name, seconds, calls in kernels[:LARGEST]],
    }
