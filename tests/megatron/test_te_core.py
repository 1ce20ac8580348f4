"""Transformer Engine's path with every Megatron-Core that is here: its wrappers and ours over a stand-in, no trainer.

The environment's, and 0.16.1 beside it; 0.19.2 in that of Megatron-Bridge. See `te_stand_in` for what this proves and
what only a GPU can.
"""

from pathlib import Path

import pytest
from support.jobs import te_jobs
from support.parity import BETA, TOLERANCE, WEIGHT, assert_equal_gradients, under_their_names
from support.parity_cases import OFFLOAD, TILES
from support.prepared_process import PreparedProcess
from support.workbench import Workbench, make_reference, make_workbench
from support.worker_pool import WorkerPool

from nemo_longpo import trainers
from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.objective import METRICS, Objective

pytestmark = pytest.mark.distributed

CORE16 = Path(__file__).parents[2] / ".core16"


@pytest.fixture(scope="module", params=[None, CORE16], ids=["", "0.16"])
def te_workers(request, tmp_path_factory):
    """Two processes in which `import transformer_engine` finds the stand-in."""
    if request.param and not (CORE16.is_dir() and trainers.is_installed("nemo")):
        pytest.skip("`make core16` installs Megatron-Core 0.16 beside 0.15")
    folder = str(tmp_path_factory.mktemp("metadata"))
    parent = PreparedProcess(te_jobs.prepare_core, overlay=request.param and str(request.param), directory=folder)
    pool = WorkerPool(parent, 2)
    yield pool
    pool.close()
    parent.close()


@pytest.fixture(scope="module")
def workbench(request, tmp_path_factory) -> Workbench:
    return make_workbench(tmp_path_factory.mktemp(request.param), request.param, "bridge")


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, [("p2p", None), ("a2a", None)]),
        (2, [("p2p", None), ("a2a", None), ("all_gather", None), ("a2a+p2p", [2, 1]), ("a2a+p2p", [1, 2])]),
    ],
    ids=["1 rank", "2 ranks"],
)
def test_attention_equals_the_cpu_backend(te_workers, ranks, settings):
    """Outputs and gradients, for every way to exchange keys and values; float64."""
    for share in te_workers.run(te_jobs.largest_differences, ranks, settings=settings):
        for setting, differences in zip(settings, share, strict=True):
            assert set(differences) == {"two branches", "a trunk alone", "three trees", "no trees"}
            assert max(differences.values()) <= 1e-12, (setting, differences)


@pytest.mark.parametrize("workbench", ["qwen3"], indirect=True)
def test_step_equals_hugging_face(workbench, te_workers, tmp_path):
    """Context parallelism, full recompute with inputs in host memory, feed-forward tiles, norms of queries and keys."""
    of_ranks = te_workers.run(
        te_jobs.train_one_step,
        2,
        model=str(workbench.hf),
        weights=str(find_checkpoint(workbench.checkpoint)),
        shards=str(workbench.shards),
        objective=Objective(beta=BETA, preference_weight=WEIGHT),
        case=(2, 1, 1, 1, OFFLOAD | TILES),
        gradients=str(tmp_path),
    )
    expected_metrics, expected_gradients = make_reference(workbench)
    assert_equal_gradients(under_their_names(workbench.hf, tmp_path), expected_gradients)
    for found, calls in of_ranks:
        assert calls >= 2 * 2 * len(workbench.records), "layers, recompute, pairs"
        for name in METRICS:
            assert found[name] == pytest.approx(expected_metrics[name], rel=TOLERANCE), name
