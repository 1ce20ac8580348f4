"""Measure how fast this machine's GPU runs the kinds of kernels that plans count with. Imports torch; takes seconds.

Every kind is a program of the sizes that one GPU has of a 7B model's layer, through the project's own attention and
log-probs; element-wise kernels are a layer without its matrix products and attention. The best of several runs counts.

Shape legend: N rows, H query heads, K key/value heads, D head size.
"""

import datetime
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_longpo import __version__
from nemo_longpo.attention import kernels
from nemo_longpo.costs import flops, rates
from nemo_longpo.costs.model_shape import MODELS, ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget, token_logprobs

from . import compute
from .rates_file import Calibration


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows of each program. `copied` is in bytes. The best of `rounds` counts, after one to warm up."""

    shape: ModelShape = MODELS["mistral-7b"]
    rows: int = 16384
    trunk: int = 32768
    branches: int = 9000
    copied: int = 2**29
    rounds: int = 5


def calibrate(device: str = "cuda", sizes: Sizes | None = None) -> Calibration:
    """Measure all kinds. Raises InputError if there is no GPU (`device` "cpu" measures that, in fp32), or no room."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "longpo plan --calibrate measures a GPU, and torch finds none on this machine; run it on the machine that "
            "trains, and give other machines its file with --rates."
        )
    try:
        found = {kind: (rate, how) for kind, rate, how in _measure(_Bench(device, sizes or Sizes()))}
    except torch.OutOfMemoryError as error:
        raise InputError(
            "the GPU has no room for a few GB of measurements; end what else runs there, which would falsify them too, "
            "and calibrate again"
        ) from error
    name, today = _device_name(device), datetime.date.today().isoformat()
    return Calibration(
        device=name,
        date=today,
        software={"torch": torch.__version__, "nemo_longpo": __version__} | _cuda(device),
        measured={kind: how for kind, (_, how) in found.items()},
        rates=rates.Rates(
            **{kind: rate for kind, (rate, _) in found.items()},
            source=f"measured on this machine's {name} on {today}",
        ),
    )


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def _cuda(device: str) -> dict[str, str]:
    if device != "cuda":
        return {}
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {"CUDA": str(torch.version.cuda), "cuDNN": str(cudnn)}


class _Bench:
    """Where and how large: makes tensors, and takes times."""

    def __init__(self, device: str, sizes: Sizes):
        self.device, self.sizes, self.shape = device, sizes, sizes.shape
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def seconds(self, run: Callable[[], object]) -> float:
        return min([self._once(run) for _ in range(self.sizes.rounds + 1)][1:])

    def _once(self, run: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


Found = Iterator[tuple[str, float, str]]
"""A kind, its rate, and what was measured."""


def _measure(bench: _Bench) -> Found:
    yield _matrices(bench)
    yield from _attention(bench, "trunk", bench.sizes.trunk, bench.sizes.trunk, causal=True)
    yield from _attention(bench, "branch", bench.sizes.branches, bench.sizes.trunk, causal=False)
    yield _logprobs(bench)
    yield _element_wise(bench)
    yield _host_link(bench)


def _matrices(bench: _Bench) -> tuple[str, float, str]:
    """The largest product of a layer."""
    rows, shape = bench.sizes.rows, bench.shape
    hidden, weight = bench.numbers(rows, shape.hidden), bench.numbers(2 * shape.ffn, shape.hidden)
    rate = 2 * rows * weight.numel() / bench.seconds(lambda: hidden @ weight.T)
    return "matrices", rate, f"product {rows} x {shape.hidden} x {2 * shape.ffn}"


def _attention(bench: _Bench, kind: str, rows: int, keys: int, causal: bool) -> Found:
    shape, scale = bench.shape, bench.shape.head_size**-0.5
    query, grad = (bench.numbers(rows, shape.heads, shape.head_size) for _ in range(2))
    key, value = (bench.numbers(keys, shape.kv_heads, shape.head_size) for _ in range(2))
    operations = 4 * shape.query_size * rows * keys * (0.5 if causal else 1)
    how = f"{rows} rows to {keys} keys, {shape.heads} x {shape.kv_heads} heads" + (", causal" if causal else "")
    forward = functools.partial(kernels.partial_attention, query, key, value, causal, scale)
    out, lse = forward()
    seconds = bench.seconds(forward)
    yield f"{kind}_forward", operations / seconds, how
    seconds = bench.seconds(
        lambda: kernels.partial_attention_backward(grad, query, key, value, out, lse, causal, scale)
    )
    yield f"{kind}_backward", compute.ATTENTION_BACKWARD * operations / seconds, how


def _logprobs(bench: _Bench) -> tuple[str, float, str]:
    """Forward and backward in tiles as training cuts them."""
    rows, shape = bench.sizes.rows, bench.shape
    hidden, table = (bench.numbers(count, shape.hidden).requires_grad_() for count in (rows, shape.vocab))
    labels = torch.randint(0, shape.vocab, (rows,), device=bench.device)
    chunk, columns = LogitBudget(1.0).tile(shape.vocab, shape.hidden, bench.dtype)

    def step() -> None:
        hidden.grad = table.grad = None
        logprobs = token_logprobs(hidden, table, labels, chunk_size=chunk, vocab_chunk_size=columns)
        torch.autograd.backward(logprobs.mean())

    rate = 4 * flops.output_flops(shape, rows) / bench.seconds(step)
    return "logprobs", rate, f"{rows} rows, vocabulary {shape.vocab}, forward and backward"


def _element_wise(bench: _Bench) -> tuple[str, float, str]:
    """A layer's norms, rotary angles, sums and gate, forward and backward."""
    rows, shape = bench.sizes.rows, bench.shape
    hidden, gate = bench.numbers(rows, shape.hidden), bench.numbers(rows, 2 * shape.ffn)
    heads = bench.numbers(rows, shape.heads + 2 * shape.kv_heads, shape.head_size)
    angles = bench.numbers(rows, 1, shape.head_size)
    leaves = [leaf.requires_grad_() for leaf in (hidden, gate, heads)]
    norm = bench.numbers(shape.hidden)

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        turned = heads[:, : shape.heads + shape.kv_heads]
        first, second = turned.chunk(2, -1)
        turned = turned * angles + torch.cat([-second, first], -1) * angles
        left, right = gate.chunk(2, -1)
        gated = F.silu(left) * (right + 0.0)
        total = F.rms_norm(hidden, (shape.hidden,), norm) + hidden
        total = F.rms_norm(total, (shape.hidden,), norm) + total
        outputs = turned, gated, total
        torch.autograd.backward(outputs, [output.detach() for output in outputs])

    moved = sum(compute.element_wise_widths(shape)) * rows * bench.dtype.itemsize
    return "element_wise", moved / bench.seconds(step), f"{rows} rows of a layer, forward and backward"


def _host_link(bench: _Bench) -> tuple[str, float, str]:
    """The slower direction between the device and pinned host memory."""
    there = torch.zeros(bench.sizes.copied, dtype=torch.uint8, device=bench.device)
    here = torch.zeros(bench.sizes.copied, dtype=torch.uint8, pin_memory=bench.device == "cuda")
    slower = max(bench.seconds(lambda: here.copy_(there)), bench.seconds(lambda: there.copy_(here)))
    return "host_link", bench.sizes.copied / slower, f"{bench.sizes.copied} bytes of pinned memory, each direction"
