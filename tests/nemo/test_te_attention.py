"""The Transformer Engine path on machines without it: NeMo's spec, Megatron-Core's wrappers and ours over a stand-in.

See `te_stand_in` for what this proves and what only a GPU can.
"""

from pathlib import Path

import pytest
from support.checkpoint_tensors import checkpoint_tensors
from support.jobs import nemo_jobs, te_jobs
from support.prepared_process import PreparedProcess
from support.worker_pool import WorkerPool

from nemo_longpo.checkpoints.run_directory import read_metrics

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def te_workers(tmp_path_factory):
    """Two processes in which `import transformer_engine` finds the stand-in."""
    parent = PreparedProcess(te_jobs.prepare, directory=str(tmp_path_factory.mktemp("metadata")))
    pool = WorkerPool(parent, 2)
    yield pool
    pool.close()
    parent.close()


def test_only_core_attention_is_replaced(te_workers):
    te_workers.run(te_jobs.only_core_attention_differs, 1)


def train(te_workers, workbench, run: Path, transformer_engine: bool, **more) -> list[dict[str, int]]:
    """Train one step on two ranks; return what each rank called how often."""
    overrides = {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": len(workbench.records),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(run),
        "trainer.devices": 2,
        "trainer.max_steps": 1,
        "trainer.strategy.context_parallel_size": 2,
        "trainer.strategy.cp_comm_type": "a2a+p2p",
        "trainer.strategy.hierarchical_context_parallel_sizes": [1, 2],
        "trainer.strategy.recompute_granularity": "full",
        # Also Transformer Engine's norm in the feed-forward part runs in tiles.
        "model.offload_layer_inputs": transformer_engine,
        "model.mlp_tile_tokens": 14 if transformer_engine else None,
        **more,
    }
    job = {"overrides": overrides, "gradients": str(run / "gradients")}
    return te_workers.run(te_jobs.finetune, 2, transformer_engine=transformer_engine, **job)


@pytest.mark.parametrize("workbench", ["qwen2"], indirect=True)
def test_fused_kernels_can_be_left_off(workbench, te_workers, tmp_path):
    for calls in train(te_workers, workbench, tmp_path, True, **{"model.fused_kernels": False}):
        assert calls["DotProductAttention.forward"] > 0
        assert calls["bias_swiglu_impl"] == 0
        assert "apply_rotary_pos_emb" not in calls


@pytest.mark.parametrize("workbench", ["qwen2", "qwen3"], indirect=True)
def test_training_equals_the_cpu_backend(workbench, te_workers, tmp_path):
    """From the same checkpoint: the first step's metrics, and gradients under the same names and shapes."""
    found_of = {}
    for transformer_engine in (False, True):
        run = tmp_path / f"run {transformer_engine}"
        calls = train(te_workers, workbench, run, transformer_engine)
        found_of[transformer_engine] = *read_metrics(run), checkpoint_tensors(run / "gradients"), calls
    expected_metrics, expected, (unfused, _) = found_of[False]
    metrics, found, calls = found_of[True]
    pairs = len(workbench.records)
    assert unfused == {"bias_swiglu_impl": 0, "rotary_angles": pairs}
    for name in ("loss", "loss/nll", "rewards/chosen", "rewards/rejected", "grad_norm"):
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-5), name
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-7, name
    of_heads = sum(name.endswith(("q_layernorm.weight", "k_layernorm.weight")) for name in found)
    assert of_heads == (2 if workbench.hf.parent.name.startswith("qwen3") else 0)
    for noted in calls:
        assert noted["DotProductAttention.__init__"] == 2, "a layer without Transformer Engine's attention"
        assert noted["RMSNorm.__init__"] == 1 + 2 * of_heads, "the final norm, and those of two layers"
        assert noted["DotProductAttention.forward"] == 2 * 2 * pairs, "layers, recompute, pairs"
        assert noted["bias_swiglu_impl"] > noted["DotProductAttention.forward"], "once for each tile"
        assert noted["rotary_angles"] == pairs, "once per micro-batch, for all layers and their recompute"
        assert noted["apply_rotary_pos_emb"] == 2 * noted["DotProductAttention.forward"], "query and key"


def test_gpu_without_transformer_engine(workers):
    ((absent, whole_layers),) = workers.run(te_jobs.refusals, 1)
    assert "needs Transformer Engine, which is not installed" in absent
    assert "longpo doctor" in absent
    assert "use_transformer_engine_full_layer_spec" in whole_layers


def test_groups_of_two_levels(workers):
    """Neighbours exchange heads, strides form rings, as in Megatron's own numbering."""
    groups = workers.run(te_jobs.hierarchical_groups, 4, sizes=[2, 2])
    assert groups == [[[0, 1], [0, 2]], [[0, 1], [1, 3]], [[2, 3], [0, 2]], [[2, 3], [1, 3]]]


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_refused_before_training(workbench, workers, tmp_path):
    settings = {
        "data.paths": str(workbench.shards),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(tmp_path / "run"),
        "trainer.devices": 4,
        "trainer.strategy.context_parallel_size": 4,
        "trainer.strategy.cp_comm_type": "a2a",
    }
    (message,) = workers.run(nemo_jobs.refusal, 1, overrides=settings)
    assert "2 key/value heads" in message
    assert "trainer.strategy.cp_comm_type=a2a" in message
