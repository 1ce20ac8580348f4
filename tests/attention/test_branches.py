"""Compare branch attention with explicit softmax attention over [trunk; branch], one causal sequence per branch."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from support.jobs import branch_jobs
from support.jobs.branch_jobs import HEAD, attend_from_branches, branch_problem

from nemo_longpo.attention.branches import _own_branch
from nemo_longpo.attention.causal import causal_attention
from nemo_longpo.planning.speed import branch_traffic

TOLERANCE = 1e-12
INPUTS = ("branch q", "branch k", "branch v", "trunk k", "trunk v")

Arrays = dict[str, np.ndarray]


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Position i reads positions 0 .. i; query head h reads key/value head h // (query heads / kv heads)."""
    heads = []
    for head in range(q.shape[1]):
        kv_head = head * k.shape[1] // q.shape[1]
        scores = scale * q[:, head] @ k[:, kv_head].T
        future = torch.arange(len(k))[None, :] > torch.arange(len(q))[:, None]
        heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, kv_head])
    return torch.stack(heads, 1)


def one_sequence_per_branch(attend, shared, own, grad, branches: Sequence[int]) -> Arrays:
    """Return outputs and gradients of the branches' rows from full causal sequences [trunk; branch]."""
    inputs = [own[name].clone().requires_grad_() for name in "qkv"]
    inputs += [shared[name].clone().requires_grad_() for name in "kv"]
    q, k, v, trunk_k, trunk_v = inputs
    outputs = []
    for rows in torch.arange(sum(branches)).split(list(branches)):
        sequence = (torch.cat(parts) for parts in ((shared["q"], q[rows]), (trunk_k, k[rows]), (trunk_v, v[rows])))
        outputs.append(attend(*sequence)[len(trunk_k) :])
    output = torch.cat(outputs)
    found = dict(zip(("output", *INPUTS), (output, *torch.autograd.grad(output, inputs, grad)), strict=True))
    return {name: tensor.detach().double().numpy() for name, tensor in found.items()}


def expected(trunk: int, branches: Sequence[int], kv_heads: int = 2, scale: float | None = None) -> Arrays:
    shared, own, grad = branch_problem(trunk, branches, kv_heads)
    scale = scale or 1 / math.sqrt(HEAD)
    return one_sequence_per_branch(lambda q, k, v: written_out(q, k, v, scale), shared, own, grad, branches)


def gathered(shares: Sequence[dict[str, tuple[np.ndarray, np.ndarray]]]) -> Arrays:
    """Return all ranks' rows in order; each row has one owner."""
    whole = {}
    for name in shares[0]:
        rows = np.concatenate([share[name][0] for share in shares])
        assert sorted(rows) == list(range(len(rows))), name
        whole[name] = np.concatenate([share[name][1] for share in shares])[np.argsort(rows)]
    return whole


def assert_equal(found: Arrays, wanted: Arrays, padding: int = 0) -> None:
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        ours = found[name]
        if padding and name != "output" and name.startswith("branch"):
            assert (ours[-padding:] == 0).all(), f"{name} of padding"
        ours = ours[: len(ours) - padding] if not name.startswith("trunk") else ours
        assert ours.shape == values.shape, name
        assert np.abs(ours - values).max(initial=0.0) <= TOLERANCE, name


@settings(max_examples=40, deadline=None)
@given(
    trunk=st.integers(0, 30),
    branches=st.lists(st.integers(1, 14), min_size=1, max_size=4),
    kv_heads=st.sampled_from([1, 2, 8]),
    padding=st.integers(0, 3),
    scale=st.sampled_from([None, 0.2]),
)
def test_one_process(trunk, branches, kv_heads, padding, scale):
    found = gathered([attend_from_branches(trunk, branches, kv_heads, padding, scale)])
    assert_equal(found, expected(trunk, branches, kv_heads, scale), padding)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "trunk", "branches", "more"),
    [
        pytest.param(1, 13, (5, 7), {}, id="one rank"),
        pytest.param(2, 13, (5, 7), {}, id="2 ranks, trunk padded, a rank within each branch's middle"),
        pytest.param(2, 16, (6,), {"kv_heads": 8}, id="2 ranks, one branch over both, as many kv heads"),
        pytest.param(2, 16, (8, 3, 4), {"padding": 1, "scale": 0.2}, id="2 ranks, 3 branches, padding, scale"),
        pytest.param(2, 3, (2, 2), {}, id="2 ranks, trunk shorter than 2 chunks each"),
        pytest.param(4, 29, (17, 9), {"padding": 2}, id="4 ranks, padding"),
        pytest.param(4, 24, (2, 13, 9), {"kv_heads": 8}, id="4 ranks, a branch over three of them"),
        pytest.param(4, 24, (3, 1), {}, id="4 ranks, one row each"),
        pytest.param(4, 24, (3,), {"padding": 5}, id="4 ranks, two of them with padding only"),
        pytest.param(4, 2, (9, 4, 7), {}, id="4 ranks, two of them without trunk"),
        pytest.param(4, 0, (5, 3), {}, id="4 ranks, no trunk at all"),
    ],
)
def test_rows_split_over_ranks(workers, ranks, trunk, branches, more):
    shares = workers.run(branch_jobs.attend_from_my_branch_rows, ranks, trunk=trunk, branches=branches, **more)
    padding = more.pop("padding", 0)
    assert_equal(gathered(shares), expected(trunk, branches, **more), padding)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 6))
def test_own_parts_cover_each_pair_of_rows_once(lengths, ranks):
    rows = -(-sum(lengths) // ranks)
    lengths[-1] += rows * ranks - sum(lengths)
    ends = list(itertools.accumulate(lengths))
    branches = [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    found = []
    for rank in range(ranks):
        for mine, keys, causal in _own_branch(branches, rows, rank):
            assert mine.stop <= rows
            queries = range(rank * rows + mine.start, rank * rows + mine.stop)
            assert not causal or list(queries) == list(range(keys.start, keys.stop)), "a causal part is square"
            found += [(q, k) for q in queries for k in range(keys.start, keys.stop) if k <= q or not causal]
    wanted = [
        (q, k) for branch in branches for q in range(branch.start, branch.stop) for k in range(branch.start, q + 1)
    ]
    assert sorted(found) == wanted


TRUNK, BRANCHES, WIDE = 448, (192, 256), 64


def relative_error(found: Arrays, truth: Arrays, names: Sequence[str]) -> float:
    """Return the RMS error over the named tensors, each relative to its own RMS."""
    return math.sqrt(sum(np.mean((found[n] - truth[n]) ** 2) / np.mean(truth[n] ** 2) for n in names) / len(names))


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merging_loses_next_to_nothing(workers, ranks, dtype):
    """The error against float64 is compared with that of plain attention over two sequences.

    Everything together may err 1.1 times as much. The output alone, in bf16, 1.35 times: a kernel rounds each part's
    output, and the merged one is rounded again; rounding dominates there, and two equal roundings make √2.
    """
    kinds = {"kv_heads": 2, "head": WIDE}
    shared, own, grad = branch_problem(TRUNK, BRANCHES, **kinds, dtype=getattr(torch, dtype))
    plain = one_sequence_per_branch(
        lambda *qkv: causal_attention(*(tensor[:, None] for tensor in qkv))[:, 0], shared, own, grad, BRANCHES
    )
    in_double = [{name: tensor.double() for name, tensor in tensors.items()} for tensors in (shared, own)]
    truth = one_sequence_per_branch(
        lambda q, k, v: written_out(q, k, v, 1 / math.sqrt(WIDE)), *in_double, grad.double(), BRANCHES
    )
    found = gathered(
        workers.run(
            branch_jobs.attend_from_my_branch_rows,
            ranks,
            **kinds,
            trunk=TRUNK,
            branches=BRANCHES,
            dtype=dtype,
        )
    )
    names = list(truth)
    assert relative_error(found, truth, names) <= 1.1 * relative_error(plain, truth, names)
    limit = 1.1 if dtype == "float32" else 1.35
    assert relative_error(found, truth, ["output"]) <= limit * relative_error(plain, truth, ["output"])


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("dtype", "number_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_traffic_matches_and_excludes_the_trunk(workers, ranks, dtype, number_bytes):
    sizes = {"rows": 12, "heads": 8, "kv_heads": 2, "head": 16}
    traffic = [
        workers.run(branch_jobs.attention_traffic, ranks, kind="branches", trunk=trunk, dtype=dtype, **sizes)
        for trunk in (8, 64)
    ]
    said = branch_traffic(12, 8, 2, 16, ranks, number_bytes)
    for share in itertools.chain(*traffic):
        assert tuple(sum(collectives.values()) for collectives in share) == said
