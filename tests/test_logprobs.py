"""Token log-probs against `logits.log_softmax(-1).gather(-1, labels)`, in one process and over several."""

import numpy as np
import pytest
import torch
from gloo_jobs import HIDDEN, ROWS, logprob_problem

from nemo_longpo.logprobs import IGNORE_LABEL, token_logprobs, vocab_parallel_logprobs

VOCAB = 7
IGNORED = (0, 4, 5, 10)
SCORED = ROWS - len(IGNORED)


def unfused(vocab: int = VOCAB, ignored: tuple[int, ...] = IGNORED):
    """Log-probs, and gradients of hidden states and weight, with all logits at once."""
    hidden, weight, labels, grad = logprob_problem(vocab, ignored)
    logits = hidden @ weight.T
    logprobs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    logprobs = logprobs.masked_fill(labels == IGNORE_LABEL, 0.0)
    return logprobs.detach(), *torch.autograd.grad(logprobs, (hidden, weight), grad)


class OutputLayer:
    """Logits of a weight, and a diary of how many rows each call was given."""

    def __init__(self, weight: torch.Tensor):
        self.weight = weight
        self.rows: list[int] = []

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return hidden @ self.weight.T


@pytest.mark.parametrize("chunk_size", [1, 2, 3, SCORED - 1, SCORED, 1024])
def test_equals_log_softmax_with_its_gradients(chunk_size):
    hidden, weight, labels, grad = logprob_problem(VOCAB, IGNORED)
    output_layer = OutputLayer(weight)
    logprobs = token_logprobs(hidden, labels, output_layer, chunk_size=chunk_size)
    assert logprobs.shape == labels.shape
    assert logprobs.dtype == torch.float32
    gradients = torch.autograd.grad(logprobs, (hidden, weight), grad)

    for found, expected in zip((logprobs, *gradients), unfused(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 3, 1024])
def test_logits_of_a_chunk_at_a_time_and_only_of_scored_rows(chunk_size):
    hidden, weight, labels, _ = logprob_problem(VOCAB, IGNORED)
    output_layer = OutputLayer(weight)
    logprobs = token_logprobs(hidden, labels, output_layer, chunk_size=chunk_size)
    forward = list(output_layer.rows)
    assert sum(forward) == SCORED
    assert max(forward) <= chunk_size
    logprobs.sum().backward()
    assert sum(output_layer.rows) == 2 * SCORED, "the backward computes the logits again, and only once"
    assert max(output_layer.rows) <= chunk_size


def test_no_logits_wait_for_the_backward():
    """What autograd keeps is hidden states, labels and the weight; nothing has the vocabulary's width."""
    hidden, weight, labels, _ = logprob_problem(VOCAB, IGNORED)
    shapes: list[torch.Size] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logprobs(hidden, labels, OutputLayer(weight), chunk_size=SCORED)
    assert all(shape[-1] != VOCAB for shape in shapes if len(shape) == 2), shapes


def test_ignored_rows_get_zero_and_no_gradient():
    hidden, weight, labels, _ = logprob_problem(VOCAB, IGNORED)
    logprobs = token_logprobs(hidden, labels, OutputLayer(weight), chunk_size=2)
    logprobs.sum().backward()
    assert logprobs[list(IGNORED)].tolist() == [0.0] * len(IGNORED)
    assert (logprobs[labels != IGNORE_LABEL] < 0).all()
    assert hidden.grad is not None
    assert hidden.grad[list(IGNORED)].abs().sum() == 0
    assert (hidden.grad[labels != IGNORE_LABEL].abs().sum(-1) > 0).all()


def test_only_ignored_rows_still_reach_every_parameter():
    """A context-parallel rank may hold no label at all; its gradient hooks must fire, with zeros."""
    hidden, weight, labels, grad = logprob_problem(VOCAB, tuple(range(ROWS)))
    output_layer = OutputLayer(weight)
    logprobs = token_logprobs(hidden, labels, output_layer)
    assert logprobs.tolist() == [0.0] * ROWS
    logprobs.backward(grad)
    assert output_layer.rows == [1]
    for parameter in (hidden, weight):
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


def test_padding_rows_of_the_vocabulary_take_no_probability_and_no_gradient():
    hidden, weight, labels, grad = logprob_problem(VOCAB, IGNORED)
    padded = torch.cat([weight.detach(), torch.full((2, HIDDEN), 9.0)]).requires_grad_()

    def logits_fn(rows: torch.Tensor) -> torch.Tensor:
        return (rows @ padded.T).masked_fill(torch.arange(VOCAB + 2) >= VOCAB, -torch.inf)

    logprobs = token_logprobs(hidden, labels, logits_fn, chunk_size=3)
    hidden_grad, padded_grad = torch.autograd.grad(logprobs, (hidden, padded), grad)
    found = logprobs, hidden_grad, padded_grad[:VOCAB]
    for value, expected in zip(found, unfused(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert (padded_grad[VOCAB:] == 0).all()


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    logprobs = vocab_parallel_logprobs(logits, torch.tensor([1, 2]))
    assert logprobs.tolist() == pytest.approx([-1e4, -np.log(3)])
    logprobs.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 1.0, 0.0], [-1 / 3, -1 / 3, 2 / 3]]))


def test_bfloat16_logits_are_scored_in_float32():
    """The only error is that of the logits themselves; the gradient comes back in their type."""
    logits = (4 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    labels = torch.arange(6)
    logprobs = vocab_parallel_logprobs(logits, labels)
    expected = logits.detach().float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, rtol=1e-6, atol=1e-6)
    logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.distributed
@pytest.mark.parametrize("ignored", [IGNORED, tuple(range(ROWS))], ids=["some ignored", "all ignored"])
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
    shares = workers.run("gloo_jobs", "score_with_my_rows", ranks, vocab=vocab, ignored=ignored, chunk_size=3)
    expected_logprobs, expected_hidden_grad, expected_weight_grad = (t.numpy() for t in unfused(vocab, ignored))
    for logprobs, _, _ in shares:
        np.testing.assert_allclose(logprobs, expected_logprobs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sum(share[1] for share in shares), expected_hidden_grad, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([s[2] for s in shares]), expected_weight_grad, rtol=1e-5, atol=1e-6)
