"""One global batch with Megatron-Core alone equals plain Hugging Face: a fault of the core shows without a trainer.

Runs with every Megatron-Core that is here: the environment's, and 0.16.1 beside it; 0.19.2 in that of Megatron-Bridge.
"""

import math

import pytest
from support import parity_cases
from support.jobs import core_jobs
from support.parity import BETA, TOLERANCE, WEIGHT, assert_equal_gradients, under_their_names
from support.workbench import Workbench, make_reference, make_workbench
from support.worker_pool import WorkerPool

from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.objective import METRICS, Objective

pytestmark = pytest.mark.distributed

# Each axis, tied weights, recompute and both layouts; norms that tensor-parallel ranks share.
CHOSEN = {
    "mistral": ["one process", "cp 2, dp 2", "concatenated, cp 2, tp 2, sequence parallel"],
    "qwen2": ["pp 2, dp 2", "tp 2, pp 2, full recompute", "concatenated, cp 2, offload, tiles"],
    "qwen3": ["tp 2, sequence parallel, full recompute"],
}


@pytest.fixture(scope="module", params=["nemo_process", "core16_process"])
def core_workers(request):
    """Ranks of their own: what they replace for the CPU is Megatron-Core's alone."""
    pool = WorkerPool(request.getfixturevalue(request.param), 4)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def workbench(request, tmp_path_factory) -> Workbench:
    return make_workbench(tmp_path_factory.mktemp(request.param), request.param, "bridge")


@pytest.fixture(scope="module")
def reference(workbench):
    return make_reference(workbench)


@pytest.mark.parametrize(("workbench", "case"), parity_cases.parameters(CHOSEN), indirect=["workbench"])
def test_step_equals_hugging_face(workbench, reference, core_workers, tmp_path, case):
    of_ranks = core_workers.run(
        core_jobs.train_one_step,
        math.prod(case[:4]),
        model=str(workbench.hf),
        weights=str(find_checkpoint(workbench.checkpoint)),
        shards=str(workbench.shards),
        objective=Objective(beta=BETA, preference_weight=WEIGHT),
        case=case,
        gradients=str(tmp_path),
    )
    expected_metrics, expected_gradients = reference
    norm = assert_equal_gradients(under_their_names(workbench.hf, tmp_path), expected_gradients)
    last = [found for found in of_ranks if found]
    for name in METRICS:
        found = sum(one[name] for one in last) / len(last)
        assert found == pytest.approx(expected_metrics[name], rel=TOLERANCE), name
    assert [one["grad_norm"] for one in last] == pytest.approx([float(norm)] * len(last), rel=TOLERANCE)
