"""One step on several ranks through Transformer Engine's own Python, against Hugging Face: loss and every gradient.

`make te29` brings Transformer Engine 2.9.0's wheel, which is Python; `te_kernels` has its compiled functions in plain
torch and says what this cannot show. What is real: its context parallelism by `p2p`, `all_gather`, `a2a` and both, its
choice of a kernel and what it refuses, memory layouts, linear layers and norms with tensor and sequence parallelism.
"""

from pathlib import Path

import pytest
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs import te_jobs
from support.parity import BETA, TOLERANCE, WEIGHT, assert_equal_gradients, under_their_names
from support.parity_cases import CONCATENATED, FULL, OFFLOAD, SELECTIVE, SEQUENCE_PARALLEL, TILES
from support.prepared_process import PreparedProcess
from support.reference import longpo_step
from support.workbench import make_workbench
from support.worker_pool import WorkerPool
from transformers import AutoModelForCausalLM

from nemo_longpo.checkpoints.run_directory import find_checkpoint
from nemo_longpo.objective import Objective

SOURCES = Path(__file__).parents[2] / ".te29"
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not SOURCES.is_dir(), reason="`make te29` brings the Python of Transformer Engine 2.9"),
]


def by(exchange: str, **more: object) -> dict:
    return {"cp_comm_type": exchange, **more}


# Sizes of cp, tp, pp, dp, then settings.
CASES = {
    "one process": (1, 1, 1, 1, {}),
    "cp 2, p2p": (2, 1, 1, 1, by("p2p")),
    "cp 4, p2p": (4, 1, 1, 1, by("p2p")),
    "cp 2, all_gather": (2, 1, 1, 1, by("all_gather")),
    "cp 4, all_gather, full recompute": (4, 1, 1, 1, by("all_gather", **FULL)),
    "cp 2, a2a": (2, 1, 1, 1, by("a2a")),
    "cp 4, a2a+p2p": (4, 1, 1, 1, by("a2a+p2p", hierarchical_context_parallel_sizes=[2, 2])),
    "tp 2, sequence parallel": (1, 2, 1, 1, SEQUENCE_PARALLEL),
    "cp 2, tp 2, offload, tiles": (2, 2, 1, 1, SEQUENCE_PARALLEL | OFFLOAD | TILES),
    "concatenated, cp 4, p2p": (4, 1, 1, 1, CONCATENATED),
    "concatenated, cp 2, a2a, selective recompute": (2, 1, 1, 1, by("a2a", **CONCATENATED, **SELECTIVE)),
}
# Its kernels take rows in another order, [B, S, …].
FLASH = ["one process", "cp 2, p2p", "cp 4, p2p", "cp 2, all_gather", "cp 4, a2a+p2p", "concatenated, cp 4, p2p"]
OBJECTIVES = {
    "longpo": (Objective(beta=BETA, preference_weight=WEIGHT), {}),
    "solopo": (Objective(loss_type="solopo", beta=BETA), {"aligned": ["chosen"]}),
}


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Four processes for each kind of kernel."""
    parents = {
        name: PreparedProcess(
            te_jobs.prepare_sources,
            sources=str(SOURCES),
            directory=str(tmp_path_factory.mktemp("metadata")),
            flash=name == "flash",
        )
        for name in ("fused", "flash")
    }
    pools = {name: WorkerPool(parent, 4) for name, parent in parents.items()}
    yield pools
    for closing in (*pools.values(), *parents.values()):
        closing.close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A Qwen3, shards with short prompts, and per objective the metrics and gradients by Hugging Face."""
    root = tmp_path_factory.mktemp("bench")
    workbench = make_workbench(root, "qwen3", "bridge")
    records = pairs.with_short_prompts(workbench.records, 100)
    model = AutoModelForCausalLM.from_pretrained(workbench.hf)
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["qwen3"])
    shards = pairs.write_shards(root / "prompted", records, tokenizer, model.config.vocab_size)
    expected = {}
    for name, (_, settings) in OBJECTIVES.items():
        model.zero_grad()
        metrics = longpo_step(model, [pairs.plain_record(record) for record in records], BETA, WEIGHT, **settings)
        expected[name] = metrics, {name: weight.grad.clone() for name, weight in model.named_parameters()}
    return workbench, shards, expected


def assert_step_equals_hugging_face(bench, pool: WorkerPool, kernels: str, case, objective: str, gradients: Path):
    workbench, shards, expected = bench
    of_ranks = pool.run(
        te_jobs.train_one_step_on_sources,
        case[0] * case[1],
        model=str(workbench.hf),
        weights=str(find_checkpoint(workbench.checkpoint)),
        shards=str(shards),
        objective=OBJECTIVES[objective][0],
        case=case,
        gradients=str(gradients),
    )
    expected_metrics, expected_gradients = expected[objective]
    assert_equal_gradients(under_their_names(workbench.hf, gradients), expected_gradients)
    for found, called in of_ranks:
        assert set(called) == {f"{kernels}_fwd", f"{kernels}_bwd"}
        for name, value in expected_metrics.items():
            assert found[name] == pytest.approx(value, rel=TOLERANCE), name


@pytest.mark.parametrize("name", CASES)
def test_ranks_over_cudnn(bench, pools, tmp_path, name):
    assert_step_equals_hugging_face(bench, pools["fused"], "fused_attn", CASES[name], "longpo", tmp_path)


@pytest.mark.parametrize("name", FLASH)
def test_ranks_over_flash_attention(bench, pools, tmp_path, name):
    assert_step_equals_hugging_face(bench, pools["flash"], "flash_attn", CASES[name], "longpo", tmp_path)


@pytest.mark.parametrize("kernels", ["fused", "flash"])
def test_short_prompts_behind_the_document(bench, pools, tmp_path, kernels):
    case = CASES["cp 2, p2p"]
    assert_step_equals_hugging_face(bench, pools[kernels], f"{kernels}_attn", case, "solopo", tmp_path)
