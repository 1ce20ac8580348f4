"""Measure the engine's kernels and layers on one GPU: exactness, time, memory, share of the chip's peak.

    python -m benchmarks.gpu.gpu_engine --minutes 5

Needs torch and this repository's sources, nothing else: no NeMo, no Transformer Engine, no second GPU. What is cheap
comes first, and every row is written when it is there: whatever ends the program leaves the rows before it. What does
not fit, or has no time left, is a row that says so.
- Exactness: branch attention with the GPU's kernels, and the naive computation in the same precision, against fp64.
  Both layouts of a small pair must agree, as a check of the timed programs themselves.
- Kernels: attention of one rank's share with every kernel of this GPU, and log-probs in tiles against all logits.
- Layers: a few layers of a 7B model, forward and backward with recompute, one pair in both layouts: all of it, or what
  one rank of `cp` times `tp` has. All attention, of the trunk too, runs through the kernels that torch ships; keys and
  values of other ranks are stood in for by the rank's own, so communication is not in these times, and norms count all
  of a rank's rows, as without sequence parallelism. The output layer is measured once, on the same rows.
- With `--profile`: where the time of a layer goes, by what its kernels do (matrix products, attention, element-wise,
  copies), one profiled forward and backward for each share and layout.
- The chip's peak is the best of several large bf16 matrix products, measured in the same run.
Tokens per second of the whole model are derived from these: layers times the number of layers, plus the output layer;
no optimizer step, no communication. Writes gpu_engine.json and gpu_engine.md into benchmarks/results.
With `--device cpu --model qwen2.5-0.5b --layers 1 --shares 256 512/4/2 --branch 64 --rounds 1 --logprob-rows 64` the
same program runs without a GPU, in fp32, which says nothing but that it works.
"""

import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from nemo_longpo.attention.branches import branch_attention
from nemo_longpo.costs.devices import peak_of_device
from nemo_longpo.costs.flops import PairLengths, layers_flops, output_flops
from nemo_longpo.costs.model_shape import MODELS, ModelShape
from nemo_longpo.logprobs import LogitBudget, token_logprobs
from nemo_longpo.placement import PairLayout

from .. import RESULTS
from ..common.results import command, parser
from .gpu_kernels import DTYPES, attention_rows, best, logprob_rows, measured_peak
from .gpu_profile import profile_rows
from .gpu_stack import Share, Stack, training_step

# The paper's own figures for the same model: (tokens per second, A800 GPUs) by length.
PAPER = {131072: (4401, 8), 524288: (2744, 16)}
K = 1024
# Trunk tokens, and over how many context- and tensor-parallel ranks.
SHARES = (f"{32 * K}", f"{128 * K}/4/2", f"{128 * K}", f"{512 * K}/4/2", f"{1024 * K}/8")


class Record:
    """The rows so far by section, in a file at any time; sections that start after the deadline get one row."""

    def __init__(self, output: Path, minutes: float, about: dict[str, Any]):
        self.output, self.deadline = output, time.monotonic() + 60 * minutes
        self.report = about | {"kernels": [], "logprobs": [], "layers": [], "profile": []}

    def add(self, section: str, rows: Iterable[dict[str, Any]], what: dict[str, Any]) -> None:
        """Each row as it comes, or why there is none."""
        if time.monotonic() > self.deadline:
            rows = [{"refused": "no time left"}]
        found = iter(rows)
        while True:
            try:
                row = next(found, None)
            except torch.OutOfMemoryError:
                row = {"refused": "does not fit"}
            if row is None:
                return
            self.report[section].append(what | row)
            self.write()
            print(json.dumps(what | row), flush=True)
            if "refused" in row and torch.cuda.is_available():
                torch.cuda.empty_cache()

    def write(self) -> None:
        self.output.write_text(json.dumps(self.report, indent=1) + "\n")
        self.output.with_suffix(".md").write_text(table(self.report))


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    flags.add_argument("--model", default="mistral-7b", choices=sorted(MODELS))
    flags.add_argument("--layers", type=int, default=2, help="layers at once; one if they do not fit")
    flags.add_argument("--shares", nargs="+", default=SHARES, help="trunk tokens[/cp ranks[/tp ranks]]")
    flags.add_argument("--branch", type=int, default=4500, help="tokens of each of the two branches")
    flags.add_argument("--logprob-rows", type=int, default=16 * K)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--minutes", type=float, default=5.0, help="after which nothing new is started")
    flags.add_argument("--profile", action="store_true", help="also where the time of a layer goes")
    flags.add_argument("--output", type=Path, default=RESULTS / "gpu_engine.json")
    arguments = flags.parse_args()
    torch.manual_seed(0)
    shape, device, rounds = MODELS[arguments.model], arguments.device, arguments.rounds
    about = {
        "command": command(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "model": arguments.model,
        "branch_tokens": arguments.branch,
        "peak_tflops": measured_peak(device),
        "exactness": exactness(shape, device),
        "layouts_differ_by": layouts_difference(shape, device),
    }
    record = Record(arguments.output, arguments.minutes, about)
    record.write()
    shares = [share_of(text, arguments.branch) for text in arguments.shares]
    for share, tp in shares:
        record.add("kernels", attention_rows(rank_of(shape, tp), share, device, rounds), described(share, tp))
    for model in {arguments.model: None, "qwen2.5-7b" if device == "cuda" else arguments.model: None}:
        record.add("logprobs", logprob_rows(MODELS[model], arguments.logprob_rows, device, rounds), {"model": model})
    for layout in get_args(PairLayout):
        for share, tp in shares:
            placed = replace(share, layout=layout)
            rows = layer_rows(rank_of(shape, tp), placed, shape, arguments.layers, record.report, rounds, device)
            record.add("layers", rows, described(placed, tp) | {"layout": layout})
            if arguments.profile:
                rows = profile_rows(rank_of(shape, tp), placed, 1, device)
                record.add("profile", rows, described(placed, tp) | {"layout": layout})
    print(table(record.report))


def share_of(text: str, branch: int) -> tuple[Share, int]:
    """Of `tokens/cp/tp`, what a rank holds of the pair, and tp."""
    trunk, cp, tp = (int(number) for number in [*text.split("/"), 1, 1][:3])
    return Share(trunk, branch, "shared_prefix", cp), tp


def rank_of(shape: ModelShape, tp: int) -> ModelShape:
    """What a tensor-parallel rank has of every layer."""
    return replace(
        shape, heads=shape.heads // tp, kv_heads=shape.kv_heads // tp, ffn=shape.ffn // tp, vocab=-(-shape.vocab // tp)
    )


def described(share: Share, tp: int) -> dict[str, Any]:
    return {"trunk": share.trunk, "cp": share.cp, "tp": tp}


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


def layer_rows(
    rank: ModelShape, share: Share, whole: ModelShape, layers: int, report: dict[str, Any], rounds: int, device: str
) -> Iterable[dict[str, Any]]:
    """One row: `layers` layers, or one where they do not fit, with what follows for the whole model."""
    for count in sorted({layers, 1}, reverse=True):
        try:
            found = measure(rank, share, device, count, rounds)
            break
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        torch.cuda.empty_cache()  # only now has the failed attempt let go of its tensors
    found |= measure_output(rank, share, device, rounds)
    yield found | derived(rank, share, whole, found, report)


def measure(shape: ModelShape, share: Share, device: str, layers: int, rounds: int) -> dict[str, Any]:
    """Seconds per forward and backward, and peak bytes: weights, gradients and activations, no optimizer."""
    step = training_step(shape, share, layers, device, DTYPES[device])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = best(step, device, rounds)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"layers": layers, "seconds": taken, "peak_bytes": peak}


def measure_output(shape: ModelShape, share: Share, device: str, rounds: int) -> dict[str, float]:
    """Log-probs of all local rows and their gradients, in tiles."""
    count = share.sequences * share.trunk_rows + share.branch_rows
    hidden, weight = (
        torch.randn(rows, shape.hidden, device=device, dtype=DTYPES[device], requires_grad=True)
        for rows in (count, shape.vocab)
    )
    labels = torch.randint(0, shape.vocab, (count,), device=device)
    rows, columns = LogitBudget(1.0).tile(shape.vocab, shape.hidden, DTYPES[device])

    def step() -> None:
        hidden.grad = weight.grad = None
        token_logprobs(hidden, weight, labels, chunk_size=rows, vocab_chunk_size=columns).mean().backward()

    return {"output_seconds": best(step, device, rounds)}


def derived(rank: ModelShape, share: Share, whole: ModelShape, found: dict, report: dict) -> dict[str, Any]:
    """TFLOP/s of what was measured, and the speed of the whole model that follows, beside the paper's."""
    stack = replace(rank, layers=found["layers"])
    forward = layers_flops(stack, PairLengths(share.trunk, share.branch, share.branch), share.layout) / share.cp
    pair_tokens, tp = share.trunk + 2 * share.branch, whole.heads // rank.heads
    taken = found["seconds"] * whole.layers / found["layers"] + found["output_seconds"]
    output = output_flops(rank, share.sequences * share.trunk_rows + share.branch_rows)
    published = PAPER.get(share.trunk)
    speed, data_sheet = pair_tokens / (share.cp * tp) / taken, peak_of_device(report["device"])
    tflops = 4 * forward / found["seconds"] / 1e12
    return {
        "tflops": tflops,
        "share_of_peak": tflops / report["peak_tflops"],
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
        *markdown(
            ["", *errors["naive, bf16"]],
            [[way, *(f"{value:.1e}" for value in row.values())] for way, row in errors.items()],
        ),
        "",
        "Attention kernels of one rank's share, TFLOP/s; two branches, heads of this rank:",
        "",
        *markdown(
            ["trunk", "cp", "tp", "part", "rows", "keys", "heads", "kernel", "forward", "backward", "backward GB"],
            [cells(row, "part", "rows", "keys", "heads", "kernel", "forward_tflops", "backward_tflops",
                   "backward_peak_gb") for row in report["kernels"]],
        ),
        "",
        "Log-probs and both gradients; memory above hidden states, weight and labels:",
        "",
        *markdown(
            ["model", "vocabulary", "rows", "way", "tile", "s", "TFLOP/s", "peak GB"],
            [cells(row, "model", "vocab", "rows", "way", "tile", "seconds", "tflops", "peak_gb", place=False)
             for row in report["logprobs"]],
        ),
        "",
        "Layers with full recompute, one rank, measured; TFLOP/s count the recompute. Tokens per second per GPU are "
        "derived for the whole model: layers and output layer, without communication and optimizer.",
        "",
        *markdown(
            ["trunk", "cp", "tp", "layout", "layers", "s", "peak bytes", "TFLOP/s", "of peak", "output s",
             "output TFLOP/s", "tokens/s/GPU", "at A800's peak", "paper, A800"],
            [cells(row, "layout", "layers", "seconds", "peak_bytes", "tflops", "share_of_peak", "output_seconds",
                   "output_tflops", "tokens_per_second_per_gpu", "tokens_per_second_per_gpu_at_a800_peak",
                   "paper_tokens_per_second_per_gpu") for row in report["layers"]],
        ),
        *profile_table(report.get("profile", [])),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def profile_table(rows: list[dict[str, Any]]) -> list[str]:
    """Shares of the time by group of kernels; nothing where nothing was profiled."""
    if not rows:
        return []
    groups = list(next((row["shares"] for row in rows if "shares" in row), {}))
    shown = [row | {name: f"{share:.1%}" for name, share in row.get("shares", {}).items()} for row in rows]
    return [
        "",
        "Where the time of one layer goes, forward, recompute and backward:",
        "",
        *markdown(
            ["trunk", "cp", "tp", "layout", "s of all kernels", *groups],
            [cells(row, "layout", "kernel_seconds", *groups) for row in shown],
        ),
    ]


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def cells(row: dict[str, Any], *names: str, place: bool = True) -> list[str]:
    """The values of a row; one that was not measured says why in its last cell."""
    shown = [text_of(row.get(name)) for name in (*(("trunk", "cp", "tp") if place else ()), *names)]
    return [*shown[:-1], row["refused"]] if "refused" in row else shown


def text_of(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
        case int():
            return f"{value:,}"
        case list() | tuple():
            return " × ".join(f"{number:,}" for number in value)
    return str(value)


if __name__ == "__main__":
    main()
