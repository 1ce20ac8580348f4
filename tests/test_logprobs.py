"""Token log-probs against `logits.log_softmax(-1).gather(-1, labels)`, in one process and over several."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from support.fake_cuda import fake_cuda
from support.jobs import gloo_jobs
from support.jobs.gloo_jobs import HIDDEN, ROWS, logprob_problem
from support.memory_use import peak_bytes
from torch.utils.flop_counter import FlopCounterMode

from nemo_longpo import logprobs as module
from nemo_longpo.logprobs import IGNORE_LABEL, LogitBudget, token_logprobs

VOCAB = 7
IGNORED = (0, 4, 5, 10)
SCORED = ROWS - len(IGNORED)
ALL = tuple(range(ROWS))
PRODUCT = 2 * SCORED * VOCAB * HIDDEN  # FLOPs of the logits of all scored rows


def unfused(hidden, weight, labels, grad):
    """Return log-probs, and gradients of hidden states and weight, with all logits at once."""
    logprobs = (hidden @ weight.T).float().log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    logprobs = logprobs.masked_fill(labels == IGNORE_LABEL, 0.0)
    return logprobs.detach(), *torch.autograd.grad(logprobs, (hidden, weight), grad)


def chunked(hidden, weight, labels, grad, chunk_size, vocab_chunk_size=None):
    logprobs = token_logprobs(hidden, weight, labels, chunk_size=chunk_size, vocab_chunk_size=vocab_chunk_size)
    return logprobs.detach(), *torch.autograd.grad(logprobs, (hidden, weight), grad)


def score_logits(logits: list[list[float]], labels: list[int]) -> torch.Tensor:
    """Return log-probs of given logits: those of unit vectors, with the logits' transpose as the weight."""
    return token_logprobs(torch.eye(len(logits)), torch.tensor(logits).T, torch.tensor(labels), chunk_size=2)


@pytest.mark.parametrize("vocab_chunk_size", [None, 1, 3, VOCAB - 1, VOCAB, 1024])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, SCORED - 1, SCORED, 1024])
def test_equals_log_softmax_with_its_gradients(chunk_size, vocab_chunk_size):
    problem = logprob_problem(VOCAB, IGNORED)
    found = chunked(*problem, chunk_size, vocab_chunk_size)
    assert found[0].shape == problem[2].shape
    assert found[0].dtype == torch.float32
    for value, expected in zip(found, unfused(*problem), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_one_row():
    problem = [tensor[:1].detach() if len(tensor) == ROWS else tensor for tensor in logprob_problem(VOCAB, ())]
    problem[0].requires_grad_()
    for value, expected in zip(chunked(*problem, 3), unfused(*problem), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vocab_chunk_size", [None, 3])
def test_only_scored_rows_are_computed(vocab_chunk_size):
    hidden, weight, labels, grad = logprob_problem(VOCAB, IGNORED)
    with FlopCounterMode(display=False) as forward:
        logprobs = token_logprobs(hidden, weight, labels, chunk_size=3, vocab_chunk_size=vocab_chunk_size)
    with FlopCounterMode(display=False) as backward:
        logprobs.backward(grad)
    assert forward.get_total_flops() == PRODUCT
    assert backward.get_total_flops() == 3 * PRODUCT, "logits again, and two gradients"


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_parts_cost_no_work(frozen):
    hidden, weight, labels, grad = logprob_problem(VOCAB, IGNORED)
    fixed, trained = (hidden, weight) if frozen == "hidden" else (weight, hidden)
    expected = unfused(hidden, weight, labels, grad)[1 if frozen == "weight" else 2]
    fixed.requires_grad_(False)
    logprobs = token_logprobs(hidden, weight, labels, chunk_size=3)
    with FlopCounterMode(display=False) as backward:
        logprobs.backward(grad)
    assert backward.get_total_flops() == 2 * PRODUCT
    assert fixed.grad is None
    torch.testing.assert_close(trained.grad, expected, rtol=1e-5, atol=1e-6)


def test_no_logits_wait_for_the_backward():
    """Autograd keeps hidden states, labels, the weight and a number per row; nothing is as wide as a row of logits."""
    hidden, weight, labels, _ = logprob_problem(VOCAB, IGNORED)
    shapes: list[torch.Size] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logprobs(hidden, weight, labels, chunk_size=SCORED)
    assert shapes
    assert all(shape[-1] != VOCAB for shape in shapes if len(shape) == 2), shapes


def test_ignored_rows_get_zero_and_no_gradient():
    hidden, weight, labels, _ = logprob_problem(VOCAB, IGNORED)
    logprobs = token_logprobs(hidden, weight, labels, chunk_size=2)
    logprobs.sum().backward()
    assert logprobs[list(IGNORED)].tolist() == [0.0] * len(IGNORED)
    assert (logprobs[labels != IGNORE_LABEL] < 0).all()
    assert hidden.grad is not None
    assert hidden.grad[list(IGNORED)].abs().sum() == 0
    assert (hidden.grad[labels != IGNORE_LABEL].abs().sum(-1) > 0).all()


def test_only_ignored_rows_still_reach_every_parameter():
    """A context-parallel rank may hold no label at all; its gradient hooks must fire, with zeros."""
    hidden, weight, labels, grad = logprob_problem(VOCAB, ALL)
    logprobs = token_logprobs(hidden, weight, labels, chunk_size=3)
    assert logprobs.tolist() == [0.0] * ROWS
    logprobs.backward(grad)
    for parameter in (hidden, weight):
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


def test_large_logits_do_not_overflow():
    logprobs = score_logits([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]], [1, 2])
    assert logprobs.tolist() == pytest.approx([-1e4, -np.log(3)])


def test_nearly_certain_tokens_keep_their_digits():
    """100 − log(exp 100 + exp 90) would cancel: float32 numbers near 100 are 8e-6 apart."""
    (logprob,) = score_logits([[100.0, 90.0]], [0]).tolist()
    assert logprob == pytest.approx(-np.log1p(np.exp(-10.0)), rel=5e-3)


def test_label_outside_the_vocabulary_is_impossible():
    assert score_logits([[1.0, 2.0], [2.0, 1.0]], [2, 1]).tolist() == [-np.inf, pytest.approx(-np.log1p(np.e))]


@pytest.mark.parametrize(("chunk_size", "vocab_chunk_size"), [(1, None), (7, 64), (512, None), (512, 23)])
def test_bfloat16_is_as_exact_as_full_logits(chunk_size, vocab_chunk_size):
    """Root mean square of the error against the float64 truth, for log-probs and both gradients."""
    rows, hidden_size, vocab = 512, 64, 200
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, hidden_size, generator=generator).bfloat16().requires_grad_()
    weight = (0.5 * torch.randn(vocab, hidden_size, generator=generator)).bfloat16().requires_grad_()
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    grad = torch.rand(rows, generator=generator) / rows

    precise = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    logprobs = (precise[0] @ precise[1].T).log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    truth = logprobs.detach(), *torch.autograd.grad(logprobs, precise, grad.double())
    found = chunked(hidden, weight, labels, grad, chunk_size, vocab_chunk_size)
    plain, one_tile = unfused(hidden, weight, labels, grad), chunked(hidden, weight, labels, grad, rows)
    assert [value.dtype for value in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    torch.testing.assert_close(found[0].double(), truth[0], rtol=0, atol=2e-5)  # logits are not rounded
    for name, exact, ours, *others in zip(
        ("log-probs", "hidden", "weight"), truth, found, plain, one_tile, strict=True
    ):
        error, *allowed = ((value.double() - exact).square().mean().sqrt() for value in (ours, *others))
        assert error <= 1.1 * min(allowed), f"{name}: {error:.3g}, all at once {allowed}"


@pytest.mark.parametrize(("dtype", "tile"), [(torch.float32, (704, 1344)), (torch.bfloat16, (576, 1088))])
def test_tiles_stay_within_memory_budget(dtype, tile):
    """The rest: both gradients; in bfloat16 the weight's in float32, and on CPUs float32 copies of factors."""
    count, hidden_size, vocab, budget = 1000, 16, 9000, 4e6
    hidden = torch.randn(count, hidden_size).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden_size).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (count,))
    rows, columns = LogitBudget(budget / 1e9).tile(vocab, hidden_size, dtype)
    assert (rows, columns) == tile

    def step() -> None:
        token_logprobs(hidden, weight, labels, chunk_size=rows, vocab_chunk_size=columns).sum().backward()

    step()  # a first call also allocates what stays, such as the threads' buffers
    hidden.grad = weight.grad = None
    sums = 0 if dtype == torch.float32 else 4 * weight.numel()
    others = hidden.nbytes + weight.nbytes + sums + 100 * count
    found = peak_bytes(step) - others
    assert 0.7 * budget < found <= budget


def test_tile_of_a_budget():
    """Rows enough for the matrix units, and of the vocabulary what is left; whole multiples of 64."""
    assert LogitBudget(1.0).tile(32_768, 4096, torch.bfloat16) == (8192, 10_944)
    assert LogitBudget(1.0).tile(152_064, 3584, torch.bfloat16) == (8192, 15_232)
    assert LogitBudget(4.0).tile(32_768, 4096, torch.bfloat16) == (17_408, 32_768)
    assert LogitBudget(0.05).tile(152_064, 3584, torch.bfloat16) == (832, 5120)
    assert LogitBudget(1.0).tile(20_000, 4096, torch.bfloat16) == (8192, 10_048)
    assert LogitBudget(1e-3).tile(152_064, 3584, torch.bfloat16) == (17, 4928)
    assert LogitBudget(1e-9).tile(152_064, 3584, torch.bfloat16) == (1, 64)
    assert LogitBudget(1.0, rows=7).tile(152_064, 3584, torch.bfloat16) == (7, 152_064)


def test_cuda_products_are_float32():
    """Shape and type by the rules of torch's own kernel, which exists only on CUDA."""
    with fake_cuda():
        left = torch.empty(6, 3, dtype=torch.bfloat16, device="cuda")
        right = torch.empty(6, 4, dtype=torch.bfloat16, device="cuda")
        product = module._product(left.T, right)
        assert (product.shape, product.dtype, product.device.type) == ((3, 4), torch.float32, "cuda")
        total = torch.empty(3, 4, device="cuda")
        # torch has no simulation of a product that adds.
        with patch.object(torch, "addmm") as add, patch.object(module, "_products_add", return_value=True):
            module._add_product(total, left.T, right)
        with patch.object(module, "_products_add", return_value=False):
            module._add_product(total, left.T, right)
    (start, first, second), named = add.call_args
    assert (start is total, start is named["out"]) == (True, True)
    low = torch.empty(3, 6, dtype=torch.bfloat16, device="meta"), torch.empty(6, 4, dtype=torch.bfloat16, device="meta")
    assert [factor.shape for factor in (first, second)] == [factor.shape for factor in low]
    added = torch.addmm(torch.empty(3, 4, device="meta"), *low, out_dtype=named["out_dtype"])
    assert (added.shape, added.dtype) == ((3, 4), torch.float32)


@pytest.mark.gpu
def test_bfloat16_on_cuda_equals_float64():
    hidden, weight, labels, grad = (tensor.detach().cuda() for tensor in logprob_problem(VOCAB, IGNORED))
    low = [tensor.bfloat16().requires_grad_() for tensor in (hidden, weight)]
    precise = [tensor.detach().double().requires_grad_() for tensor in low]
    found, expected = chunked(*low, labels, grad, 3), unfused(*precise, labels, grad.double())
    for value, exact, tolerance in zip(found, expected, (1e-5, 1e-2, 1e-2), strict=True):
        assert (value - exact).norm() <= tolerance * exact.norm()


@pytest.mark.distributed
@pytest.mark.parametrize("ignored", [IGNORED, ALL], ids=["some ignored", "all ignored"])
@pytest.mark.parametrize(
    ("ranks", "vocab"),
    [
        pytest.param(2, 7, id="4 + 3 rows"),
        pytest.param(3, 7, id="3 + 3 + 1 rows"),
        pytest.param(3, 4, id="2 + 2 + 0 rows"),
        pytest.param(3, 9, id="3 + 3 + 3 rows"),
    ],
)
def test_split_vocabulary_equals_one_process(workers, ranks, vocab, ignored):
    shares = workers.run(
        gloo_jobs.score_with_my_rows, ranks, vocab=vocab, ignored=ignored, chunk_size=3, vocab_chunk_size=2
    )
    logprobs, hidden_grads, weight_grads, all_reduces = zip(*shares, strict=True)
    expected = [tensor.numpy() for tensor in unfused(*logprob_problem(vocab, ignored))]
    for found in logprobs:
        np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sum(hidden_grads), expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(weight_grads), expected[2], rtol=1e-5, atol=1e-6)
    assert set(all_reduces) == {0 if ignored == ALL else 2}, "two in the forward, however many chunks"
