"""Several ranks on one GPU, over host memory and gloo: Transformer Engine's real classes under every parallel size.

One process and several train the same batch in bf16. Each must be about as near to the truth, Hugging Face in fp32, as
one process is. The weights are representable in bf16. Without a GPU the same ranks run on the CPU layer, in fp32: then
only Transformer Engine and its kernels have not been tried.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models as tiny, training_pairs as pairs
from support.jobs import nemo_jobs, resume_jobs, staged_jobs
from support.parity import BETA, TOLERANCE, WEIGHT, assert_equal_gradients, train_one_step
from support.reference import longpo_step
from torch import Tensor
from transformers import AutoModelForCausalLM

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.shards.schema import PairRecord

MARGIN = 1.1
CONCATENATED = {"model.pair_layout": "concatenated"}
FULL = {"trainer.strategy.recompute_granularity": "full"}
FRUGAL = {"model.offload_layer_inputs": True, "model.mlp_tile_tokens": 100}
BF16 = {
    "trainer.plugins.precision": "bf16-mixed",
    "trainer.plugins.params_dtype": torch.bfloat16,
    "optim.config.bf16": True,
}


def by(exchange: str) -> dict:
    return {"trainer.strategy.cp_comm_type": exchange}


# Sizes of cp, tp, pp, dp, then settings.
CASES = {
    "cp 2, p2p": (2, 1, 1, 1, by("p2p")),
    "cp 4, p2p": (4, 1, 1, 1, by("p2p")),
    "cp 2, all_gather": (2, 1, 1, 1, by("all_gather")),
    "cp 4, all_gather": (4, 1, 1, 1, by("all_gather")),
    "cp 2, a2a": (2, 1, 1, 1, by("a2a")),
    "cp 4, a2a": (4, 1, 1, 1, by("a2a")),
    "tp 2, sequence parallel": (1, 2, 1, 1, {"trainer.strategy.sequence_parallel": True}),
    "cp 2, tp 2, full recompute": (2, 2, 1, 1, {"trainer.strategy.sequence_parallel": True, **FULL}),
    "cp 2, tp 2, offload and tiles": (2, 2, 1, 1, {"trainer.strategy.sequence_parallel": True, **FULL, **FRUGAL}),
    "concatenated, cp 2, p2p": (2, 1, 1, 1, {**CONCATENATED, **by("p2p")}),
    "concatenated, cp 4, a2a, full recompute": (4, 1, 1, 1, {**CONCATENATED, **by("a2a"), **FULL}),
}


@dataclass(frozen=True)
class Bench:
    checkpoint: Path
    shards: Path
    records: list[PairRecord]
    metrics: dict[str, float]
    gradients: dict[str, Tensor]


@pytest.fixture(scope="module")
def bench(workers, tmp_path_factory) -> Bench:
    """A model with heads of 64, two pairs with branches of about 150 rows, and the truth about them."""
    workers.run(staged_jobs.get_ready, 4)
    root = tmp_path_factory.mktemp("staged")
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    hf = tiny.save_tiny(root / "hf", "mistral", initializer_range=0.03, **sizes)
    rounded = {name: weight.bfloat16().float() for name, weight in load_file(hf / "model.safetensors").items()}
    save_file(rounded, hf / "model.safetensors", metadata={"format": "pt"})
    tokenizer, vocab_size = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["mistral"]), len(rounded["lm_head.weight"])
    rng = np.random.default_rng(5)
    records = [pairs.random_record(rng, vocab_size, trunk, 20, f"doc-{trunk}") for trunk in (411, 530)]
    shards = pairs.write_shards(root / "shards", records, tokenizer, vocab_size)
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    metrics = longpo_step(model, [pairs.plain_record(record) for record in records], BETA, WEIGHT)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return Bench(import_checkpoint(hf, root / "nemo"), shards, records, metrics, gradients)


@pytest.fixture(scope="module")
def alone(bench, workers, tmp_path_factory) -> dict[str, float]:
    """Per layout, the error of one process in bf16."""
    directory = tmp_path_factory.mktemp("alone")
    errors = {}
    for name, layout in (("shared_prefix", {}), ("concatenated", CONCATENATED)):
        case = (1, 1, 1, 1, {**layout, **BF16})
        metrics, gradients, _ = train_one_step(bench, workers, directory / name, case, staged_jobs.finetune)
        assert metrics["loss"] == pytest.approx(bench.metrics["loss"], rel=5e-3)
        errors[name] = relative_rms(gradients, bench.gradients)
    return errors


def relative_rms(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    assert found.keys() == truth.keys()
    error = sum(float((found[name] - truth[name]).double().square().sum()) for name in truth)
    return float((error / sum(float(tensor.double().square().sum()) for tensor in truth.values())) ** 0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["shared_prefix", "concatenated"])
def test_one_process_is_a_bf16_run(alone, layout):
    assert 1e-3 < alone[layout] < 5e-2


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_ranks_are_as_exact_as_one_process(bench, alone, workers, tmp_path, name):
    *sizes, settings = CASES[name]
    case = (*sizes, settings | BF16)
    metrics, gradients, _ = train_one_step(bench, workers, tmp_path, case, staged_jobs.finetune)
    assert metrics["loss"] == pytest.approx(bench.metrics["loss"], rel=5e-3)
    layout = "concatenated" if name.startswith("concatenated") else "shared_prefix"
    error = relative_rms(gradients, bench.gradients)
    print(f"{name}: {error:.4g}, one process {alone[layout]:.4g}")
    assert error <= MARGIN * alone[layout]


@pytest.mark.gpu
def test_a_stopped_run_goes_on(bench, workers, tmp_path):
    """Checkpoints are written beside the training. Kernels add up in any order, so not every bit is the same."""

    def settings(run: str) -> dict:
        return {
            "data.paths": str(bench.shards),
            "data.global_batch_size": 1,
            "resume.restore_config.path": str(bench.checkpoint),
            "log.log_dir": str(tmp_path / run),
            "log.ckpt.every_n_train_steps": 1,
            "optim.config.lr": 1e-3,
            "trainer.devices": 1,
            "trainer.max_steps": 4,
            **BF16,
        }

    workers.run(nemo_jobs.finetune, 1, overrides=settings("straight"), checkpoints=True)
    workers.run(resume_jobs.finetune_until, 1, overrides=settings("stopped"), step=3)
    assert read_metrics(tmp_path / "stopped")[-1]["step"] == 3
    workers.run(nemo_jobs.finetune, 1, overrides=settings("stopped"), checkpoints=True)
    straight, stopped = (read_metrics(tmp_path / run) for run in ("straight", "stopped"))
    assert [line["step"] for line in stopped] == [1, 2, 3, 4]
    assert straight[3]["loss"] < 0.99 * straight[0]["loss"], "the steps change little, and so hold little"
    for name in ("loss", "loss/nll", "rewards/margins", "lr"):
        for expected, found in zip(straight, stopped, strict=True):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-3), (name, found["step"])


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.is_available(), reason="the rehearsal for machines without a GPU")
@pytest.mark.parametrize("name", ["cp 4, p2p", "cp 2, tp 2, full recompute"])
def test_ranks_on_one_cpu(bench, workers, tmp_path, name):
    metrics, gradients, _ = train_one_step(bench, workers, tmp_path, CASES[name], staged_jobs.finetune)
    assert metrics["loss"] == pytest.approx(bench.metrics["loss"], rel=TOLERANCE)
    assert_equal_gradients(gradients, bench.gradients)


@pytest.mark.distributed
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_collectives(workers, device):
    ranks = 3
    brought = 10 * np.arange(ranks)[:, None] + np.arange(2 * ranks)
    found = workers.run(staged_jobs.collectives, ranks, device=device)
    for rank, results in enumerate(found):
        expected = {
            "sum": brought.sum(0),
            "mean": brought.mean(0),
            "largest": brought.max(0),
            "from rank 1": brought[1],
            "all": brought.flatten(),
            "my share of the sum": brought.sum(0)[2 * rank : 2 * rank + 2],
            "exchanged": brought[:, 2 * rank : 2 * rank + 2].flatten(),
            "all, as a list": brought.flatten(),
            "of my neighbour": brought[rank - 1],
            "of the other neighbour": brought[(rank + 1) % ranks],
            "objects": np.arange(ranks),
        }
        assert results.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(results[name], value, err_msg=name)
