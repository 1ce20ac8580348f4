"""The stock `nemo llm finetune` finds the recipes, shows them, and trains with one on two processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from support.jobs import nemo_jobs
from support.training_pairs import with_short_prompts, write_tiny_shards

from nemo_longpo.checkpoints.run_directory import find_checkpoint, metrics_file, read_metrics
from nemo_longpo.cli import main as longpo
from nemo_longpo.costs.flops import PairLengths, training_flops
from nemo_longpo.costs.model_shape import load_shape

pytestmark = pytest.mark.distributed

SECONDS = 240


def _nemo(
    directory: Path, *arguments: str, programs: Path = Path(sys.executable).parent
) -> subprocess.CompletedProcess:
    command = [str(programs / "nemo"), "llm", "finetune", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def test_help_lists_the_recipes(tmp_path, programs, workers):
    shown = _nemo(tmp_path, "--help", programs=programs).stdout
    (recipes,) = workers.run(nemo_jobs.names_of_recipes, 1)
    assert [name for name in recipes if name not in shown] == []


def test_dryrun_prints_the_configuration(tmp_path, programs):
    """Of a 7B recipe: values of its own, every kind of override, and NeMo's LoRA."""
    overrides = {
        "data.paths": "my_shards",
        "resume.restore_config.path": "my_checkpoint",
        "model.objective.beta": "0.2",
        "model.objective.preference": "ipo",
        "model.objective.average_logprobs": "True",
        "model.objective.beta_exponent": "-0.5",
        "model.objective.beta_tokens": "65536",
        "model.pair_layout": "concatenated",
        "trainer.max_steps": "7",
        "trainer.strategy.context_parallel_size": "1",
        "trainer.strategy.sequence_parallel": "false",
        "trainer.strategy.recompute_granularity": "null",
        "trainer.strategy.recompute_modules": "null",
        "trainer.plugins.grad_reduce_in_fp32": "false",
        "peft": "lora(dim=16)",
        "optim.config.lr": "1e-4",
        "log.log_dir": "my_run",
    }
    settings = (f"{path}={value}" for path, value in overrides.items())
    result = _nemo(tmp_path, "--factory", "mistral_7b_longpo_128k", "--dryrun", *settings, programs=programs)
    assert result.returncode == 0, result.stdout
    for shown in (
        *(
            "my_shards",
            "my_checkpoint",
            "beta=0.2",
            "preference='ipo'",
            "average_logprobs=True",
            "beta_tokens=65536",
            "pair_layout='concatenated'",
            "max_steps=7",
            "my_run",
            "lr=0.0001",
        ),
        *("context_parallel_size=1", "sequence_parallel=False", "recompute_granularity=None", "LoRA(", "dim=16"),
        *("grad_reduce_in_fp32=False", "preference_weight=0.01", "seq_length=139264", "tensor_model_parallel_size=4"),
    ):
        assert shown in result.stdout, shown
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize("workbench", ["qwen2"], indirect=True)
def test_two_processes_train_and_save(workbench, tmp_path):
    """In bf16, which one argument of the recipe sets; the configuration is shown once, not by every rank."""
    result = _nemo(
        tmp_path,
        "--factory",
        "tiny_longpo(precision=bf16-mixed)",
        "--yes",
        f"data.paths={workbench.shards}",
        "data.global_batch_size=2",
        f"resume.restore_config.path={workbench.checkpoint}",
        f"log.log_dir={tmp_path / 'run'}",
        "trainer.devices=2",
        "trainer.max_steps=1",
        "trainer.strategy.context_parallel_size=2",
        "log.ckpt.every_n_train_steps=1",
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert result.stdout.count("Resolved Arguments") == 1
    for shown in ("precision='bf16-mixed'", "params_dtype=torch.bfloat16", "bf16=True"):
        assert shown in result.stdout
    (step,) = read_metrics(tmp_path / "run")
    assert step["step"] == 1
    assert "mfu" not in step, "nobody knows the peak of a CPU"
    tokens, flops = (step[name] * step["step_seconds"] for name in ("tokens_per_second", "tflops_per_device"))
    assert (tokens, 2 * 1e12 * flops) in list(_work_of_two(workbench))
    last = find_checkpoint(tmp_path / "run")
    assert (last / "weights").is_dir()
    for record in ("io.json", "model.yaml"):
        assert (last / "context" / record).is_file()
    assert list(metrics_file(tmp_path / "run").parent.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_planned_recipe_trains(workbench, tmp_path, programs):
    """The file is taken as it is; only the data, the checkpoint and the length of the run are given."""
    longest = max(max(record.lengths[0] for record in workbench.records), 2)
    plan = ["--length", str(longest), "--branch-tokens", "64", "--gpus", "2", "--cp", "2", "--batch-size", "2"]
    plan += ["--short-tokens", "11", "6"]
    shards = write_tiny_shards(tmp_path / "shards", with_short_prompts(workbench.records, 100))
    recipe = ["--layout", "concatenated", "--recompute", "mlp", "--recipe", str(tmp_path / "plan.yaml")]
    assert longpo(["plan", "--model", str(workbench.checkpoint), *plan, *recipe]) == 0
    result = _nemo(
        tmp_path,
        "--yaml",
        "plan.yaml",
        "--yes",
        f"data.paths={shards}",
        f"resume.restore_config.path={workbench.checkpoint}",
        f"log.log_dir={tmp_path / 'run'}",
        "trainer.max_steps=2",
        programs=programs,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    for shown in ("context_parallel_size=2", "pair_layout='concatenated'", "recompute_modules=['mlp']"):
        assert shown in result.stdout
    steps = read_metrics(tmp_path / "run")
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["loss"] == pytest.approx(step["loss/longpo"] + step["loss/alignment"]) for step in steps)


def _work_of_two(workbench) -> Iterator[Any]:
    """Tokens and FLOPs of every two records: what a global batch of two may have taken."""
    shape = load_shape(str(workbench.checkpoint))
    for records in combinations(workbench.records, 2):
        flops = sum(training_flops(shape, PairLengths(*record.lengths)) for record in records)
        yield pytest.approx((sum(sum(record.lengths) for record in records), flops), rel=1e-5)


def test_bad_input_is_one_sentence(tmp_path, programs):
    result = _nemo(tmp_path, "--factory", "tiny_longpo", "--yes", "data.paths=nowhere", programs=programs)
    assert result.returncode != 0
    assert "resume.restore_config.path is not set; give the imported checkpoint to start from." in result.stdout
    assert "Traceback" not in result.stdout
