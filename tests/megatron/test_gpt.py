"""Megatron's output layer, taken over, over tensor-parallel ranks and in Megatron's data parallelism.

Needs no NeMo: `make test-bridge` runs this file on the Megatron-Core of that environment too.
"""

import numpy as np
import pytest
import torch
from support.jobs import output_layer_jobs
from support.jobs.gloo_jobs import HIDDEN, logprob_problem

pytestmark = pytest.mark.distributed

VOCAB = 7
IGNORED = (0, 4, 5)
USED = 8


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["", "sequence parallel"])
def test_tensor_parallel_ranks_equal_one_process(workers, sequence_parallel):
    """Hidden states of all rows on both ranks, or half of them on each; 4 + 3 vocabulary rows and one of padding."""
    hidden, weight, labels, grad = logprob_problem(VOCAB, IGNORED)
    logits = hidden[:USED] @ weight.T
    logprobs = logits.log_softmax(-1).gather(-1, labels[:USED, None].clamp(min=0))[:, 0]
    logprobs = logprobs * (labels[:USED] >= 0)
    hidden_grad, weight_grad = torch.autograd.grad(logprobs, (hidden, weight), grad[:USED])

    results = workers.run(
        output_layer_jobs.score_with_tensor_parallelism,
        2,
        vocab=VOCAB,
        ignored=IGNORED,
        sequence_parallel=sequence_parallel,
    )
    hidden_grads = hidden_grad[:USED].chunk(2) if sequence_parallel else [hidden_grad[:USED]] * 2
    for (found, _), expected, rows in zip(results, hidden_grads, weight_grad.split(4), strict=True):
        np.testing.assert_allclose(found[0], logprobs.detach().numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], expected.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[2], rows.numpy(), rtol=1e-5, atol=1e-6)
    for _, collectives in results:
        (count,) = collectives.values()
        assert count == 1, "the hidden states' gradient is completed once, not per chunk"
        assert ("reduce_scatter" if sequence_parallel else "allreduce") in str(collectives)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"overlap": True}, {"unused_rows": 2}, {"reduce_in_fp32": False}],
    ids=["", "overlapped reduction", "padding rows", "main_grad in bfloat16"],
)
def test_micro_batches_add_up_in_main_grad(workers, tied, settings):
    """The output layer adds its gradient itself where that is exact; elsewhere Megatron's hook does, once rounded."""
    (step,) = workers.run(output_layer_jobs.accumulate, 1, vocab=VOCAB, tied=tied, micro_batches=3, **settings)
    assert len(step["found"]) == (1 if tied else 2)
    precise = settings.get("reduce_in_fp32", True)
    for found, expected in zip(step["found"], step["expected"], strict=True):
        assert np.linalg.norm(found - expected) <= (0.005 if precise else 0.02) * np.linalg.norm(expected)
    if not tied and precise:  # the embedding's gradient is rounded by autograd; this one never is
        found, expected = step["found"][1], step["expected"][1]
        assert np.linalg.norm(found - expected) <= 0.003 * np.linalg.norm(expected)
    assert step["calls"] == 3, "the weight is used inside a call of the layer that owns it"
    assert step["claimed"] == ([precise] if tied else [False, precise])
    assert not step["left"], "a view of main_grad in a weight's grad would be added again"


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("overlap", [False, True], ids=["", "overlapped reduction"])
def test_data_parallel_ranks_share_main_grad(workers, tied, overlap):
    """Two ranks of a distributed optimizer, two micro-batches each: the mean over ranks of their sums."""
    ranks = workers.run(
        output_layer_jobs.accumulate, 2, vocab=VOCAB, tied=tied, micro_batches=2, overlap=overlap, distributed=True
    )
    assert len(ranks[0]["found"]) == (1 if tied else 2)
    for number, found in enumerate(ranks[0]["found"]):
        expected = sum(rank["expected"][number] for rank in ranks) / len(ranks)
        assert np.linalg.norm(found - expected) <= 0.005 * np.linalg.norm(expected)
        np.testing.assert_array_equal(ranks[1]["found"][number], found)
    assert [rank["claimed"][-1] for rank in ranks] == [True, True]


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_no_second_sum_of_the_weight_gradient(workers, tied):
    """Without main_grad the backward holds the sum in fp32 and then a rounded copy of it, 6 bytes a number."""
    job = {"vocab": 20_000, "tied": tied, "micro_batches": 2}
    held, separately = (
        workers.run(output_layer_jobs.accumulate, 1, reduce_in_fp32=precise, **job)[0]["held"]
        for precise in (True, False)
    )
    assert separately - held >= 0.95 * 4 * job["vocab"] * HIDDEN


def test_deferred_weight_gradient_is_refused(workers):
    (message,) = workers.run(output_layer_jobs.refusal_of_deferral, 1)
    assert "defer_embedding_wgrad_compute" in message
