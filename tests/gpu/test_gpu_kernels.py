"""The kernels of a GPU against float64 on the CPU: attention with a merged log-sum-exp, and log-probs.

Low precision may err as the written-out computation in the same precision does, times a margin, and no more.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from nemo_longpo import logprobs as module
from nemo_longpo.attention import kernels
from nemo_longpo.logprobs import IGNORE_LABEL, token_logprobs

pytestmark = pytest.mark.gpu

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
NEEDS_HOPPER = pytest.mark.skipif(not HOPPER, reason="needs compute capability 9.0")
KERNELS = {
    "cuDNN": pytest.param(kernels.CUDNN, id="cuDNN", marks=NEEDS_HOPPER),
    "cuDNN, folded": pytest.param(
        replace(kernels.CUDNN, folds_forward=True, folds_backward=True), id="cuDNN, folded", marks=NEEDS_HOPPER
    ),
    "cuDNN, grouped": pytest.param(
        replace(kernels.CUDNN, folds_forward=False, folds_backward=False), id="cuDNN, grouped", marks=NEEDS_HOPPER
    ),
    "FlashAttention-2": pytest.param(kernels.FLASH_2, id="FlashAttention-2"),
}
# (query rows, keys, causal)
SIZES = [
    (64, 64, True),
    (65, 65, True),
    (1153, 1153, True),
    (64, 129, False),
    (77, 5001, False),
    (3001, 65, False),
    (1153, 2050, False),
]
FEW = [(1, 1, True), (2, 2, True), (63, 63, True), (1, 700, False), (700, 1, False), (33, 62, False)]


def strided_problem(rows: int, keys: int, heads: int, kv_heads: int, head: int) -> list[Tensor]:
    """Q, K, V, the output's gradient, and keys and values of another part; the first four as slices of wider rows."""
    generator = torch.Generator().manual_seed(rows * keys + head)

    def rows_of(count: int, *widths: int) -> tuple[Tensor, ...]:
        return torch.randn(count, sum(widths) + 8, generator=generator).bfloat16()[:, 8:].split(widths, 1)

    (query,), (key, value) = rows_of(rows, heads * head), rows_of(keys, kv_heads * head, kv_heads * head)
    (grad,), (other_key, other_value) = rows_of(rows, heads * head), rows_of(17, kv_heads * head, kv_heads * head)
    return [t.unflatten(1, (-1, head)) for t in (query, key, value, grad, other_key, other_value)]


def written_out(q, k, v, grad, other_k, other_v, causal: bool, scale: float) -> list[Tensor]:
    """Own output and lse, those of both parts merged, and the gradients of the own part given the merged ones."""
    groups = q.shape[1] // k.shape[1]
    k, v, other_k, other_v = (t.repeat_interleave(groups, 1) for t in (k, v, other_k, other_v))
    own, other = (scale * torch.einsum("nhd,mhd->nhm", q, keys) for keys in (k, other_k))
    if causal:
        own = own.masked_fill(~torch.ones(len(q), len(k), dtype=torch.bool).tril()[:, None], -torch.inf)
    lse = own.logsumexp(-1)
    whole = torch.logaddexp(lse, other.logsumexp(-1))
    share, other_share = ((scores - whole[..., None]).exp() for scores in (own, other))
    out = torch.einsum("nhm,mhd->nhd", share, v) + torch.einsum("nhm,mhd->nhd", other_share, other_v)
    grad_scores = scale * share * (torch.einsum("nhd,mhd->nhm", grad, v) - (out * grad).sum(-1, keepdim=True))
    grad_k, grad_v = torch.einsum("nhm,nhd->mhd", grad_scores, q), torch.einsum("nhm,nhd->mhd", share, grad)
    summed = [t.unflatten(1, (-1, groups)).sum(2) for t in (grad_k, grad_v)]
    grad_q = torch.einsum("nhm,mhd->nhd", grad_scores, k)
    return [torch.einsum("nhm,mhd->nhd", own.softmax(-1), v), lse, out, whole, grad_q, *summed]


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.cpu().double() - exact).norm() / exact.norm())


def attend(problem: list[Tensor], out: Tensor, lse: Tensor, causal: bool, scale: float) -> list[Tensor]:
    """The public functions on the GPU, as the branches call them."""
    q, k, v, grad, *_ = problem
    gradients = kernels.partial_attention_backward(grad, q, k, v, out, lse, causal, scale)
    return [*kernels.partial_attention(q, k, v, causal, scale), *gradients]


@cache
def solved(rows: int, keys: int, causal: bool, heads: int, kv_heads: int, head: int) -> tuple[list[Tensor], ...]:
    """A problem and what is true of it in float64."""
    problem = strided_problem(rows, keys, heads, kv_heads, head)
    return problem, written_out(*(t.double() for t in problem), causal, head**-0.5)


def assert_exact(rows: int, keys: int, causal: bool, *heads: int) -> None:
    problem, (own, own_lse, out, lse, *gradients) = solved(rows, keys, causal, *heads)
    scale = problem[0].shape[2] ** -0.5
    on_gpu = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda").copy_(t) for t in problem]
    found = attend(on_gpu, out.bfloat16().cuda(), lse.float().cuda(), causal, scale)
    assert (found[1].cpu().double() - own_lse).abs().max() <= 1e-4
    assert found[1].dtype == torch.float32
    for name, ours, exact in zip(("out", "dQ", "dK", "dV"), (found[0], *found[2:]), (own, *gradients), strict=True):
        # A gradient that is the difference of large numbers, as of a row with one key, has no digits in bf16.
        floor = 1e-3 * problem[3].double().norm() if name != "out" else 0.0
        assert (ours.cpu().double() - exact).norm() <= 0.01 * exact.norm() + floor, (name, relative(ours, exact))


@pytest.mark.parametrize(("heads", "kv_heads", "head"), [(4, 1, 128), (4, 4, 64), (2, 1, 256)])
@pytest.mark.parametrize("kernel", KERNELS.values())
def test_attention_is_exact(kernel, heads, kv_heads, head, monkeypatch):
    monkeypatch.setattr(kernels, "kernel_for", lambda query, key: kernel)
    for size in SIZES:
        assert_exact(*size, heads, kv_heads, head)


@pytest.mark.parametrize("head", [64, 128, 256])
def test_few_rows_and_keys_are_exact(head):
    """With whatever kernel is chosen for them."""
    for size in FEW:
        assert_exact(*size, 8, 2, head)


@NEEDS_HOPPER
@pytest.mark.parametrize("head", [64, 128, 256])
def test_hopper_chooses_cudnn(head):
    query = torch.empty(8192, 1, head, dtype=torch.bfloat16, device="cuda")
    assert kernels.kernel_for(query, query) is kernels.CUDNN
    assert kernels.kernel_for(query, query[1:]) is kernels.FLASH_2


@NEEDS_HOPPER
def test_a_gradient_of_other_strides_after_a_plan_was_made():
    """torch would take the plan of the first call for the second, and read the gradient with the wrong strides."""
    scale, (q, k, v, grad, other_k, other_v) = 0.1, strided_problem(300, 500, 8, 2, 128)
    _, _, out, lse, *exact = written_out(
        *(t.double() for t in (q, k, v, grad, other_k, other_v)), causal=False, scale=scale
    )
    q, k, v = (t.cuda() for t in (q, k, v))
    wide = torch.randn(300, 3, 8, 128, dtype=torch.bfloat16, device="cuda")
    for place, into_wide in enumerate((False, True)):
        grad_now, out_now = grad.cuda(), out.bfloat16().cuda()
        if into_wide:
            wide[:, place], wide[:, 2] = grad_now, out_now
            grad_now, out_now = wide[:, place], wide[:, 2]
        found = kernels.cudnn_backward(grad_now, q, k, v, out_now, lse.float().cuda(), False, scale)
        for ours, truth in zip(found, exact, strict=True):
            assert relative(ours, truth) <= 0.01, (into_wide, relative(ours, truth))


@pytest.mark.parametrize("fused", [True, False], ids=["Triton", "torch alone"])
@pytest.mark.parametrize(("rows", "columns"), [(1000, None), (300, 1000), (64, 4099), (7, 5003)])
def test_logprobs_are_exact(fused, rows, columns, monkeypatch):
    if fused:
        assert module._fused_kernels(torch.device("cuda", 0)) is not None, "Triton comes with torch for CUDA"
    else:
        monkeypatch.setattr(module, "_fused_kernels", lambda device: None)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(613, 256, generator=generator).bfloat16()
    weight = (0.3 * torch.randn(5003, 256, generator=generator)).bfloat16()
    labels = torch.randint(0, 5003, (613,), generator=generator)
    labels[::7], labels[5] = IGNORE_LABEL, 5002
    grad = torch.rand(613, generator=generator) / 613

    def score(inputs: list[Tensor], device: str, way) -> list[Tensor]:
        leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
        found = way(*leaves, labels.to(device))
        gradients = torch.autograd.grad(found, leaves, grad.to(device, found.dtype))
        return [tensor.detach().cpu().double() for tensor in (found, *gradients)]

    def unfused(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        logits = hidden @ weight.T
        logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        return logprobs.gather(-1, labels.clamp(min=0)[:, None])[:, 0].masked_fill(labels == IGNORE_LABEL, 0.0)

    def tiled(*inputs: Tensor) -> Tensor:
        return token_logprobs(*inputs, chunk_size=rows, vocab_chunk_size=columns)

    truth = score([hidden.double(), weight.double()], "cpu", unfused)
    plain, found = score([hidden, weight], "cuda", unfused), score([hidden, weight], "cuda", tiled)
    assert (found[0] - truth[0]).abs().max() <= 1e-4, "logits are not rounded"
    for name, ours, theirs, exact in zip(("log-probs", "hidden", "weight"), found, plain, truth, strict=True):
        assert relative(ours, exact) <= 1.1 * relative(theirs, exact), name
