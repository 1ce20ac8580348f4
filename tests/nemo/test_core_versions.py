"""Training under NeMo with Megatron-Core 0.16, as in image 26.02: the same numbers as with 0.15, and runs that move.

`make core16` puts 0.16.1 beside the environment's 0.15.3.
"""

import os
import subprocess

import pytest
import torch
from support import parity, parity_cases
from support.checkpoint_tensors import checkpoint_tensors
from support.golden import assert_golden_curve
from support.jobs import nemo_jobs, resume_jobs, version_jobs
from support.worker_pool import WorkerPool
from transformers import AutoModelForCausalLM

from nemo_longpo.checkpoints.run_directory import find_checkpoint, read_metrics
from nemo_longpo.conversion.exporter import export_checkpoint

pytestmark = pytest.mark.distributed

# One of each: every kind of parallelism and recompute, tied weights (all but Mistral), frugal layers in each layout.
CASES = {
    "mistral": (
        *("one process", "cp 2, tp 2, sequence parallel", "dp 2", "cp 2, offload, tiles"),
        "concatenated, cp 2, full recompute",
    ),
    "qwen2": ("tp 2, pp 2, full recompute", "pp 2, block recompute, offload, tiles"),
    "qwen3": ("tp 2, sequence parallel, full recompute",),
}


def test_versions_beside_each_other(workers, core16_workers):
    ((nemo, core),), ((nemo_too, later),) = (pool.run(version_jobs.installed, 1) for pool in (workers, core16_workers))
    assert (core, later) == ("0.15.3", "0.16.1")
    assert nemo == nemo_too


@pytest.mark.parametrize(("workbench", "case"), parity_cases.parameters(CASES), indirect=["workbench"])
def test_step_equals_hugging_face(workbench, reference, core16_workers, tmp_path, case):
    parity.assert_step_equals_reference(workbench, reference, core16_workers, tmp_path, case)


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_golden_curve(workbench, core16_workers, tmp_path):
    assert_golden_curve(workbench, core16_workers, tmp_path)


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_a_run_moves_to_the_later_version(workbench, workers, core16_process, core16_workers, tmp_path):
    """It begins with 0.15 and goes on with 0.16, where it is killed and resumed; in the end every weight and all of the
    optimizer's state, under weight decay, have the bits of a run that never left 0.15."""

    def settings(run: str) -> dict:
        return {
            "data.paths": str(workbench.shards),
            "data.global_batch_size": 3,
            "resume.restore_config.path": str(workbench.checkpoint),
            "log.log_dir": str(tmp_path / run),
            "log.ckpt.every_n_train_steps": 2,
            "optim.config.lr": 1e-2,
            "optim.config.weight_decay": 0.1,
            "trainer.devices": 2,
            "trainer.max_steps": 6,
            "trainer.strategy.context_parallel_size": 2,
        }

    workers.run(nemo_jobs.finetune, 2, overrides=settings("stays"), checkpoints=True)
    workers.run(resume_jobs.finetune_until, 2, overrides=settings("moves"), step=3)
    with pytest.raises(AssertionError, match="was killed"):
        WorkerPool(core16_process, 2).run(
            nemo_jobs.finetune, 2, overrides=settings("moves"), checkpoints=True, kill_after=5
        )
    core16_workers.run(nemo_jobs.finetune, 2, overrides=settings("moves"), checkpoints=True)

    names = ("step", "loss", "grad_norm", "lr", "rewards/margins")
    stayed, moved = (
        [[line[name] for name in names] for line in read_metrics(tmp_path / run)] for run in ("stays", "moves")
    )
    assert [line[0] for line in moved] == [1, 2, 3, 4, 5, 6]
    assert moved == stayed
    expected, found = (checkpoint_tensors(find_checkpoint(tmp_path / run) / "weights") for run in ("stays", "moves"))
    assert any("exp_avg_sq" in name for name in expected)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("workbench", ["qwen2"], indirect=True)
def test_command_trains_and_export_reads_it(workbench, core16_process, tmp_path):
    programs = core16_process.write_programs(tmp_path / "bin")
    settings = {
        "data.paths": workbench.shards,
        "data.global_batch_size": 2,
        "resume.restore_config.path": workbench.checkpoint,
        "log.log_dir": tmp_path / "run",
        "trainer.max_steps": 1,
    }
    command = [programs / "nemo", "llm", "finetune", "--factory", "tiny_longpo", "--yes"]
    result = subprocess.run(
        [*command, *(f"{name}={value}" for name, value in settings.items())],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (step,) = read_metrics(tmp_path / "run")
    assert step["step"] == 1
    exported = export_checkpoint(find_checkpoint(tmp_path / "run"), tmp_path / "hf")
    assert AutoModelForCausalLM.from_pretrained(exported).config.tie_word_embeddings


def test_versions_that_were_never_tried_are_refused(workers):
    images = [("2.6.0rc0", "0.15.0rc8"), ("2.6.0rc0", "0.16.0rc0"), ("2.7.0", "0.16.0")]
    untried = [("2.7.3", "0.17.0"), ("2.7.3", "0.14.1"), ("2.8.0", "0.16.1")]
    (said,) = workers.run(version_jobs.refusals, 1, pairs=images + untried)
    assert said[: len(images)] == [None] * len(images)
    for message, (nemo, core) in zip(said[len(images) :], untried, strict=True):
        assert message.startswith((f"nemo-toolkit {nemo}:", f"megatron-core {core}:"))
        assert "tested are NeMo and Megatron-Core 2.7.3 with 0.15.3" in message
        assert "2.7.3 with 0.16.1" in message


def test_the_call_that_is_mended_needs_it(core16_workers):
    """If not, upstream has changed: delete what translates."""
    ((passed, taken, met),) = core16_workers.run(version_jobs.arguments_of_the_optimizer, 1)
    assert passed == met == {"no_weight_decay_cond", "scale_lr_cond", "lr_mult"}
    assert not taken


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_conditions_that_are_gone_are_refused(workbench, core16_workers, tmp_path):
    settings = {
        "data.paths": str(workbench.shards),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(tmp_path / "run"),
        "optim.no_weight_decay_cond": version_jobs.decays_nothing,
        "trainer.max_steps": 1,
    }
    (said,) = core16_workers.run(nemo_jobs.refusal, 1, overrides=settings)
    assert "optim.no_weight_decay_cond is set" in said
    assert "Megatron-Core 0.15" in said
