"""Rounds whose training and evaluation are Slurm jobs, on stand-ins for Slurm and for the programs of the image."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import fake_slurm, small_evolution

from nemo_longpo.cli import main

pytestmark = pytest.mark.slow  # importing NeMo-Run takes seconds


IMAGE = {"container_image": "longpo.sqsh"}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return fake_slurm.use(monkeypatch, tmp_path)


@pytest.fixture
def told(tmp_path: Path, slurm: Path) -> dict[str, Any]:
    """Two nodes for training, and one for evaluation in an image; the programs are stand-ins."""
    programs = small_evolution.programs(tmp_path)
    (programs / "torchrun").write_text('#!/bin/bash\nwhile [ "$1" != --no-python ]; do shift; done\nshift\nexec "$@"\n')
    (programs / "torchrun").chmod(0o755)
    told = small_evolution.content(tmp_path)
    team = {"type": "SlurmExecutor", "account": "team", "gpus_per_node": 8}
    told["executors"] = {
        "two": team | {"nodes": 2, "ntasks_per_node": 8, "launcher": "torchrun"},
        "one": team | IMAGE | {"container_mounts": [f"{tmp_path}:{tmp_path}"]},
    }
    told["train"] = {
        "factory": "tiny_longpo",
        "settings": {"trainer.max_steps": 4},
        "executor": "two",
        "env": {"T": "1"},
    }
    told["evaluate"]["executor"] = "one"
    return told


def run(folder: Path, told: dict[str, Any], *flags: str) -> int:
    return main(["evolve", str(small_evolution.write(folder, told)), *flags])


def steps_of_jobs(home: Path) -> list[str]:
    return [re.sub(r"-[0-9a-f]{8}$", "", job["name"].removeprefix("longpo.")) for job in fake_slurm.jobs(home)]


def test_rounds_end_with_the_models_of_this_machine(tmp_path, told, slurm, capfd):
    assert run(tmp_path, told) == 0
    first = "model of (pairs of base + start of base 320)"
    second = f"model of (pairs of {first} + start of {first} 1088)"
    assert (tmp_path / "out/round-2/model/content").read_text() == second
    jobs = [f"{name}-{n}" for n in (1, 2) for name in ("import", "train", "export", "evaluate")]
    assert steps_of_jobs(slurm) == jobs
    started = [" ".join(command) for _, command in fake_slurm.started(slurm)]
    assert re.match(
        r"torchrun --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:29500 --rdzv-id \d+ --nnodes 2 --nproc-per-node 8 "
        rf"--node-rank 0 --tee 3 --no-python {tmp_path}/bin/nemo llm finetune --factory tiny_longpo --yes .+ "
        r"trainer.max_steps=4 trainer.num_nodes=2 trainer.devices=8$",
        started[1],
    )
    assert [line.startswith("bash ") for line in started[:4]] == [True, False, True, True]
    scripts = [Path(job["script"]).read_text() for job in fake_slurm.jobs(slurm)[:4]]
    assert ["--nodes=2" in text for text in scripts] == [False, True, False, False]
    assert ["export T=1" in text for text in scripts] == [False, True, False, False]
    assert "train-1: job 102 " in capfd.readouterr().err
    assert run(tmp_path, told) == 0
    assert len(fake_slurm.jobs(slurm)) == 8


def test_torchrun_of_a_job_starts_megatron_bridge(tmp_path, told, slurm, capsys):
    told["train"] |= {"trainer": "bridge", "settings": {"train.train_iters": 4}}
    assert run(tmp_path, told, "--dry-run") == 0
    said = capsys.readouterr().out
    assert re.search(r"torchrun .+ --nnodes 2 --nproc-per-node 8 .+ -m nemo_longpo\.bridge\.train --recipe tiny_", said)
    told["executors"]["two"]["launcher"] = None
    assert run(tmp_path, told, "--dry-run") == 2
    assert "executor 'two' starts no ranks for trainer bridge; give it launcher: torchrun" in capsys.readouterr().err


def test_machine_and_executor_may_change(tmp_path, told, slurm):
    assert run(tmp_path, told) == 0
    del told["train"]["executor"]
    told["train"]["settings"]["trainer.devices"] = 2
    assert run(tmp_path, told) == 0
    assert len(small_evolution.calls(tmp_path)) == 10


def test_killed_run_watches_its_job_further(tmp_path, told, slurm):
    told["rounds"] = told["rounds"][:1]
    path = small_evolution.write(tmp_path, told)
    process = subprocess.Popen(
        [sys.executable, "-m", "nemo_longpo.cli", "evolve", str(path)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "import-1   convert" in line:
            (slurm / "hold").touch()  # before the next job
        if "train-1: Slurm job 102" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert main(["evolve", str(path), "--redo", "train-1"]) == 2
    (slurm / "hold").unlink()
    assert main(["evolve", str(path)]) == 0
    assert steps_of_jobs(slurm) == ["import-1", "train-1", "export-1", "evaluate-1"]
    assert (tmp_path / "out/round-1/model/content").read_text() == "model of (pairs of base + start of base 320)"


def test_job_that_runs_out_of_time_is_submitted_again(tmp_path, told, slurm, capfd):
    told["rounds"] = told["rounds"][:1]
    (slurm / "ends").write_text("COMPLETED\nTIMEOUT\nNODE_FAIL\nCOMPLETED")
    assert run(tmp_path, told) == 0
    assert steps_of_jobs(slurm) == ["import-1", *3 * ["train-1"], "export-1", "evaluate-1"]
    assert "train-1: its job ended with TIMEOUT; it is submitted again" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ends", "restarts", "jobs"), [("COMPLETED\nFAILED", 3, 2), ("COMPLETED\nTIMEOUT\nTIMEOUT\nTIMEOUT", 1, 3)]
)
def test_failure_ends_the_run_with_a_sentence(tmp_path, told, slurm, capfd, ends, restarts, jobs):
    told["train"]["restarts"] = restarts
    (slurm / "ends").write_text(ends)
    assert run(tmp_path, told) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert re.search(rf"step 'train-1': its Slurm job ended with {ends[-7:].split()[-1]}; the lines above are", last)
    assert len(fake_slurm.jobs(slurm)) == jobs


def test_dry_run_shows_batch_scripts(tmp_path, told, slurm, capsys):
    assert run(tmp_path, told, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"  on two: HF_HUB_OFFLINE=1 T=1 {tmp_path}/bin/nemo llm finetune" in said
    assert "batch script of train-2:\n#!/bin/bash" in said
    assert said.count("#SBATCH --nodes=2") == 2
    assert run(tmp_path, told, "--dry-run", "--json") == 0
    assert [*json.loads(capsys.readouterr().out)["scripts"]][:2] == ["import-1", "train-1"]
    assert not (tmp_path / "out").exists()
    assert not (slurm / "jobs").exists()


def test_image_has_programs_of_its_own(tmp_path, told, capsys):
    del told["environments"]["train"]
    told["executors"]["two"] |= IMAGE | {"container_mounts": [f"{tmp_path}:{tmp_path}:ro"]}
    assert run(tmp_path, told, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "on two: HF_HUB_OFFLINE=1 T=1 nemo llm finetune" in said
    assert f"HF_HUB_OFFLINE=1 {Path(sys.executable).parent}/longpo data run" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"partion": "gpus"},
            "executors.two: SlurmExecutor refuses its arguments (SlurmExecutor.__init__() got an unex",
        ),
        (
            {"launcher": "ft"},
            "round 1: train: executor 'two' has launcher 'ft'; give torchrun, or none for one task a GPU",
        ),
        ({"tunnel": {"type": "SSHTunnel"}}, "train: executor 'two' has a tunnel; run `longpo evolve` where jobs are"),
        (
            IMAGE | {"container_mounts": ["/data:/data"]},
            "train: executor 'two': its container does not show X/base under the same",
        ),
        (
            IMAGE | {"container_mounts": ["X:/in"]},
            "train: executor 'two': its container does not show X/base under the same",
        ),
        ({"type": "LocalExecutor"}, "train: executor 'two' is a LocalExecutor; give 'local', this machine, or a Slurm"),
    ],
)
def test_wrong_executor_gets_one_sentence(tmp_path, told, slurm, capsys, change, message):
    told["executors"]["two"] |= json.loads(json.dumps(change).replace("X", str(tmp_path)))
    assert run(tmp_path, told) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert message in sentence.replace(str(tmp_path), "X")
    assert not (slurm / "jobs").exists()


def test_other_number_of_processes_is_refused(tmp_path, told, slurm, capsys):
    told["train"]["settings"]["trainer.devices"] = 4
    assert run(tmp_path, told) == 2
    assert "train: trainer.devices is 4, and executor 'two' starts 8; leave the setting out" in capsys.readouterr().err
