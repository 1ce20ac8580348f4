"""Measure the engine's attention and layers on one GPU: exactness, time, memory, share of the chip's peak.

    python -m benchmarks.gpu.gpu_engine

Needs torch and this repository's sources, nothing else: no NeMo, no Transformer Engine, no second GPU.
- Exactness: branch attention with the CUDA kernels, and the naive computation in the same precision, against fp64.
- Layers: as many layers of a 7B model as fit, forward and backward with recompute, one pair in both layouts, at 32K and
  128K tokens, and what one of 8 context-parallel ranks computes at 512K. All attention, of the trunk too, runs through
  the kernels that torch ships; keys and values of other ranks are stood in for by the rank's own, so communication is
  not in these times. The output layer is measured once, on the same rows.
- Both layouts of a small pair must agree, as a check of the timed programs themselves.
- The chip's peak is the best of several large bf16 matrix products, measured in the same run.
Tokens per second of the whole model are derived from these: layers times the number of layers, plus the output layer;
no optimizer step, no communication. Writes gpu_engine.json and gpu_engine.md into benchmarks/results.
With `--device cpu --model qwen2.5-0.5b --layers 1 --lengths 256 512/4 --branch 24 --rounds 1` the same program runs
without a GPU, in fp32, which says nothing but that it works.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from nemo_longpo.attention.branches import branch_attention
from nemo_longpo.costs.devices import peak_of_device
from nemo_longpo.costs.flops import layers_flops, output_flops
from nemo_longpo.costs.model_shape import MODELS, ModelShape
from nemo_longpo.logprobs import LogitBudget, token_logprobs
from nemo_longpo.placement import PairLayout

from .. import RESULTS
from ..common.results import command, parser
from .gpu_stack import Share, Stack

# The paper's own figures for the same model: (tokens per second, A800 GPUs) by length.
PAPER = {131072: (4401, 8), 524288: (2744, 16)}
LOGPROB_MEMORY = 2**30
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    flags.add_argument("--model", default="mistral-7b", choices=sorted(MODELS))
    flags.add_argument("--layers", type=int, help="by default as many as fit")
    flags.add_argument("--lengths", nargs="+", default=["32768", "131072", "524288/8"], help="trunk tokens[/ranks]")
    flags.add_argument("--branch", type=int, default=4500, help="tokens of each of the two branches")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--output", type=Path, default=RESULTS / "gpu_engine.json")
    arguments = flags.parse_args()
    torch.manual_seed(0)
    shape, device = MODELS[arguments.model], arguments.device
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    report: dict[str, Any] = {
        "command": command(),
        "device": name,
        "torch": torch.__version__,
        "model": arguments.model,
        "branch_tokens": arguments.branch,
        "peak_tflops": measured_peak(device),
        "exactness": exactness(shape, device),
        "layouts_differ_by": layouts_difference(shape, device),
        "layers": [],
    }
    for length in arguments.lengths:
        trunk, _, ranks = length.partition("/")
        for layout in get_args(PairLayout):
            share = Share(int(trunk), arguments.branch, layout, int(ranks or 1))
            found = measure_most_layers(shape, share, device, arguments.layers, arguments.rounds)
            found |= measure_output(shape, share, device, arguments.rounds)
            report["layers"].append(found | derived(shape, share, found, report["peak_tflops"], name))
            print(json.dumps(report["layers"][-1]), flush=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(table(report))
    print(table(report))


def measured_peak(device: str) -> float:
    """TFLOP/s of the best of several square products."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[device]) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right, device) for _ in range(20)) / 1e12


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def exactness(shape: ModelShape, device: str) -> dict[str, dict[str, float]]:
    """Relative root-mean-square errors against fp64 of the output and of all gradients, for two unequal branches."""
    trunk, branches = (
        (4000, [slice(0, 700), slice(700, 1600)]) if device == "cuda" else (90, [slice(0, 7), slice(7, 20)])
    )
    rows = branches[-1].stop
    sizes = [(rows, shape.heads), (rows, shape.kv_heads), (rows, shape.kv_heads), *[(trunk, shape.kv_heads)] * 2]
    inputs = [torch.randn(n, heads, shape.head_size, device=device).bfloat16() for n, heads in sizes]
    grad = torch.randn(rows, shape.heads, shape.head_size, device=device).bfloat16()

    def run(attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        out = attend(*leaves, branches)
        return [out.detach().double(), *(t.double() for t in torch.autograd.grad(out, leaves, grad.to(dtype)))]

    truth = run(naive, torch.float64)
    names = "output", "dQ", "dK", "dV", "dK of the trunk", "dV of the trunk"
    ways = {
        "kernels, bf16": run(branch_attention, torch.bfloat16),
        "naive, bf16": run(naive, torch.bfloat16),
        "naive, fp32": run(naive, torch.float32),
    }
    return {
        way: {
            name: float((found - true).norm() / true.norm())
            for name, found, true in zip(names, tensors, truth, strict=True)
        }
        for way, tensors in ways.items()
    }


def naive(query: Tensor, key: Tensor, value: Tensor, trunk_key: Tensor, trunk_value: Tensor, branches: list[slice]):
    """Softmax attention of each branch over trunk and itself, written out."""
    outputs = []
    for rows in branches:
        q, groups = query[rows], query.shape[1] // key.shape[1]
        k, v = (
            torch.cat(pair).repeat_interleave(groups, 1)
            for pair in ((trunk_key, key[rows]), (trunk_value, value[rows]))
        )
        scores = torch.einsum("nhd,mhd->hnm", q, k) * q.shape[-1] ** -0.5
        hidden = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(len(trunk_key) + 1)
        outputs.append(torch.einsum("hnm,mhd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def layouts_difference(shape: ModelShape, device: str) -> float:
    """Two layers, the same pair in both layouts: relative RMS difference of the branches' rows (the timed programs)."""
    small = replace(shape, hidden=512, ffn=1024, heads=8, kv_heads=2)
    shares = [Share(200, 40, layout) for layout in get_args(PairLayout)]
    stack = Stack(small, 2, device, DTYPES[device])
    trunk, chosen, rejected = (torch.randn(n, small.hidden, device=device, dtype=DTYPES[device]) for n in (200, 40, 40))
    shared = stack(torch.cat([trunk, chosen, rejected])[:, None], shares[0])[200:, 0]
    full = stack(torch.stack([torch.cat([trunk, chosen]), torch.cat([trunk, rejected])], 1), shares[1])[200:]
    full = torch.cat([full[:, 0], full[:, 1]])
    return float(((shared - full).norm() / full.norm()).detach())


def measure_most_layers(
    shape: ModelShape, share: Share, device: str, layers: int | None, rounds: int
) -> dict[str, Any]:
    """`measure` with fewer and fewer layers until they fit, unless `layers` says how many."""
    for count in [layers] if layers else [n for n in (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1) if n <= shape.layers]:
        try:
            return measure(shape, share, device, count, rounds)
        except torch.OutOfMemoryError:
            print(f"{count} layers do not fit at {share}", flush=True)
        torch.cuda.empty_cache()  # only now has the failed attempt let go of its tensors
    raise SystemExit(f"not even one layer fits at {share}")


def measure(shape: ModelShape, share: Share, device: str, layers: int, rounds: int) -> dict[str, Any]:
    """Seconds per forward and backward, the best of `rounds` after one to warm up, and peak bytes.

    The memory holds weights, gradients and activations, no optimizer.
    """
    stack = Stack(shape, layers, device, DTYPES[device])
    size = share.trunk_rows + share.branch_rows, share.sequences, shape.hidden
    rows = torch.randn(size, device=device, dtype=DTYPES[device], requires_grad=True)
    grad = torch.randn(size, device=device, dtype=DTYPES[device]) * 1e-3

    def step() -> None:
        stack.zero_grad(set_to_none=True)
        rows.grad = None
        stack(rows, share).backward(grad)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    stack_seconds = min([seconds(step, device) for _ in range(rounds + 1)][1:])
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"layers": layers, "seconds": stack_seconds, "peak_bytes": peak}


def measure_output(shape: ModelShape, share: Share, device: str, rounds: int) -> dict[str, float]:
    """Log-probs of all local rows and their gradients, in chunks."""
    count = share.sequences * share.trunk_rows + share.branch_rows
    hidden, weight = (
        torch.randn(rows, shape.hidden, device=device, dtype=DTYPES[device], requires_grad=True)
        for rows in (count, shape.vocab)
    )
    labels = torch.randint(0, shape.vocab, (count,), device=device)
    chunk = LogitBudget(LOGPROB_MEMORY / 1e9).chunk_size(shape.vocab, shape.hidden, DTYPES[device])

    def step() -> None:
        hidden.grad = weight.grad = None
        token_logprobs(hidden, weight, labels, chunk_size=chunk).mean().backward()

    return {"output_seconds": min([seconds(step, device) for _ in range(rounds + 1)][1:])}


def derived(shape: ModelShape, share: Share, found: dict, peak_tflops: float, device_name: str) -> dict[str, Any]:
    """TFLOP/s of what was measured, and the speed of the whole model that follows, beside the paper's."""
    stack = replace(shape, layers=found["layers"])
    forward = layers_flops(stack, share.trunk, share.branch, share.branch, share.layout) / share.cp
    pair_tokens = share.trunk + 2 * share.branch
    whole = found["seconds"] * shape.layers / found["layers"] + found["output_seconds"]
    output = output_flops(shape, share.sequences * share.trunk_rows + share.branch_rows)
    published = PAPER.get(share.trunk)
    speed, data_sheet = pair_tokens / share.cp / whole, peak_of_device(device_name)
    return {
        "trunk": share.trunk,
        "ranks": share.cp,
        "layout": share.layout,
        "tflops": 4 * forward / found["seconds"] / 1e12,
        "share_of_peak": 4 * forward / found["seconds"] / 1e12 / peak_tflops,
        "output_tflops": 4 * output / found["output_seconds"] / 1e12,
        "tokens_per_second_per_gpu": speed,
        "tokens_per_second_per_gpu_at_a800_peak": None if data_sheet is None else speed * 312e12 / data_sheet,
        "paper_tokens_per_second_per_gpu": None if published is None else published[0] / published[1],
    }


def table(report: dict[str, Any]) -> str:
    errors = report["exactness"]
    lines = [
        f"`{report['command']}` on {report['device']}; torch {report['torch']}; {report['model']}, two branches of "
        f"{report['branch_tokens']:,} tokens. Best large matrix product: {report['peak_tflops']:.3g} TFLOP/s. "
        f"Both layouts of a small pair differ by {report['layouts_differ_by']:.1e} (relative RMS).",
        "",
        "Branch attention, relative RMS error against fp64:",
        "",
        "| | " + " | ".join(errors["naive, bf16"]) + " |",
        "|---" * (1 + len(errors["naive, bf16"])) + "|",
        *(f"| {way} | " + " | ".join(f"{value:.1e}" for value in row.values()) + " |" for way, row in errors.items()),
        "",
        "Layers with full recompute, one rank, measured; TFLOP/s count the recompute. Tokens per second per GPU are "
        "derived for the whole model: layers and output layer, without communication and optimizer.",
        "",
        "| trunk | ranks | layout | layers | s per layer | peak GB | TFLOP/s | of peak | output s | tokens/s/GPU "
        "| at A800's peak | paper, A800 |",
        "|---" * 12 + "|",
    ]
    for row in report["layers"]:
        optional = [
            "-" if row[name] is None else f"{row[name]:,.0f}"
            for name in ("tokens_per_second_per_gpu_at_a800_peak", "paper_tokens_per_second_per_gpu")
        ]
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}"
        lines.append(
            f"| {row['trunk']:,} | {row['ranks']} | {row['layout']} | {row['layers']} "
            f"| {row['seconds'] / row['layers']:.4f} | {peak} | {row['tflops']:.1f} | {row['share_of_peak']:.0%} "
            f"| {row['output_seconds']:.3f} | {row['tokens_per_second_per_gpu']:,.0f} | {' | '.join(optional)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
