"""What `gpu_engine` measures of single kernels: products, attention of a rank's share, log-probs; times and memory.

Shape legend: N rows of all branches, M trunk rows of this rank.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from nemo_longpo import logprobs
from nemo_longpo.attention import kernels
from nemo_longpo.costs.flops import output_flops
from nemo_longpo.costs.model_shape import ModelShape

from .gpu_stack import Share

DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
BACKWARD_OF_ATTENTION = 2.5  # products per forward one: the scores again


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best(run: Callable[[], object], device: str, rounds: int) -> float:
    """Seconds of the best of `rounds`, after one to warm up."""
    return min([seconds(run, device) for _ in range(rounds + 1)][1:])


def peak_gb(run: Callable[[], object], device: str) -> float | None:
    """Memory above what is held now, 10⁹ bytes."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 1e9


def measured_peak(device: str) -> float:
    """TFLOP/s of the best of several square products."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[device]) for _ in range(2))
    return 2 * size**3 / best(lambda: left @ right, device, 20) / 1e12


def known_kernels(device: str) -> dict[str, kernels.Kernel]:
    if device == "cpu":
        return {"CPU": kernels.CPU}
    hopper = torch.cuda.get_device_capability() >= (9, 0)
    return ({"cuDNN": kernels.CUDNN} if hopper else {}) | {"FlashAttention-2": kernels.FLASH_2}


def attention_rows(shape: ModelShape, share: Share, device: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Per kernel: the branches' attention to this rank's trunk rows, and that of a branch to its own rows."""
    parts = {
        "branches to trunk": (2 * share.branch, -(-share.trunk // share.cp), False),
        "branch to itself": (-(-share.branch // share.cp),) * 2 + (True,),
    }
    for part, (rows, keys, causal) in parts.items():
        sizes = (rows, shape.heads), (keys, shape.kv_heads), (keys, shape.kv_heads), (rows, shape.heads)
        q, k, v, grad = (torch.randn(*size, shape.head_size, device=device).to(DTYPES[device]) for size in sizes)
        scale = shape.head_size**-0.5
        flops = 4 * shape.query_size * rows * keys * (0.5 if causal else 1) / 1e12
        for name, kernel in known_kernels(device).items():
            with mock.patch.object(kernels, "kernel_for", return_value=kernel):
                out, lse = kernels.partial_attention(q, k, v, causal, scale)

                def forward(q=q, k=k, v=v, causal=causal, scale=scale) -> object:
                    return kernels.partial_attention(q, k, v, causal, scale)

                def backward(grad=grad, q=q, k=k, v=v, out=out, lse=lse, causal=causal, scale=scale) -> object:
                    return kernels.partial_attention_backward(grad, q, k, v, out, lse, causal, scale)

                yield {
                    "part": part,
                    "rows": rows,
                    "keys": keys,
                    "heads": [shape.heads, shape.kv_heads],
                    "kernel": name,
                    "forward_tflops": flops / best(forward, device, rounds),
                    "backward_tflops": BACKWARD_OF_ATTENTION * flops / best(backward, device, rounds),
                    "backward_peak_gb": peak_gb(backward, device),
                }


def logprob_rows(shape: ModelShape, rows: int, device: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Log-probs of some rows with their gradients: all logits at once, in tiles, and in tiles without Triton."""
    dtype = DTYPES[device]
    hidden, weight = (
        (torch.randn(count, shape.hidden, device=device) * shape.hidden**-0.25).to(dtype).requires_grad_()
        for count in (rows, shape.vocab)
    )
    labels = torch.randint(0, shape.vocab, (rows,), device=device)
    tile = logprobs.LogitBudget(1.0).tile(shape.vocab, shape.hidden, dtype)

    def all_at_once() -> Tensor:
        return (hidden @ weight.T).float().log_softmax(-1).gather(-1, labels[:, None])

    def tiled() -> Tensor:
        return logprobs.token_logprobs(hidden, weight, labels, chunk_size=tile[0], vocab_chunk_size=tile[1])

    without = mock.patch.object(logprobs, "_fused_kernels", return_value=None)
    ways = {"tiles": tiled, "tiles, torch alone": tiled, "all logits": all_at_once}
    for name, way in ways.items():
        # All logits have no fourth product: they are kept. Its share of the speed is that of the same work.
        products = 3 if name == "all logits" else 4
        with without if name == "tiles, torch alone" else contextlib.nullcontext():

            def step(way: Callable[[], Tensor] = way) -> None:
                hidden.grad = weight.grad = None
                way().mean().backward()

            found: dict[str, Any] = {"vocab": shape.vocab, "hidden": shape.hidden, "rows": rows, "way": name}
            try:
                taken = best(step, device, rounds)
                found |= {"seconds": taken, "tflops": products * output_flops(shape, rows) / taken / 1e12}
                found |= {"tile": None if name == "all logits" else tile, "peak_gb": peak_gb(step, device)}
            except torch.OutOfMemoryError:
                found["refused"] = "does not fit"
        yield found
