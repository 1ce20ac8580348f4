"""Two rounds as public commands, what a changed setting would make again, the gates, and a run that is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import small_evolution
from support.small_plans import is_alive
from support.waiting import wait_until

from nemo_longpo.checkpoints.forms import NEMO
from nemo_longpo.cli import build_parser, main
from nemo_longpo.data_tools.pipeline.config import load_pipeline
from nemo_longpo.errors import InputError
from nemo_longpo.evolution.rounds import evolution_steps
from nemo_longpo.steps import read_records, run_steps

STEPS = ["data", "pairs", "import", "train", "export", "evaluate", "gate"]


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """A file's content; its programs are in `bin` beside it."""
    small_evolution.programs(tmp_path)
    return small_evolution.content(tmp_path)


def run(folder: Path, told: dict[str, Any], *flags: str) -> int:
    return main(["evolve", str(small_evolution.write(folder, told)), *flags])


def short_lines(folder: Path, text: str) -> list[str]:
    return [line.strip().replace(str(folder), "X") for line in text.splitlines() if line.startswith("  ")]


def test_dry_run_shows_every_command(tmp_path, told, capsys):
    assert run(tmp_path, told, "--dry-run") == 0
    assert short_lines(tmp_path, capsys.readouterr().out) == [
        "HF_HUB_OFFLINE=1 X/bin/longpo data run X/out/round-1/data.yaml",
        "HF_HUB_OFFLINE=1 X/bin/longpo convert import --model X/base --output X/out/round-1/start --overwrite "
        "--max-length 320 --rope-theta 10000.0",
        "HF_HUB_OFFLINE=1 X/bin/nemo llm finetune --factory tiny_longpo --yes data.paths=X/out/round-1/data/shards "
        "data.seq_length=320 resume.restore_config.path=X/out/round-1/start log.log_dir=X/out/round-1/training "
        "trainer.devices=2 trainer.max_steps=4",
        "HF_HUB_OFFLINE=1 X/bin/longpo convert export --checkpoint X/out/round-1/training "
        "--output X/out/round-1/model --overwrite",
        "HF_HUB_OFFLINE=1 X/bin/longpo eval before=X/base after=X/out/round-1/model --suite X/questions.jsonl "
        "--lengths 64 256 --samples 8 --seed 1234 --output X/out/round-1/evaluation",
        "HF_HUB_OFFLINE=1 X/bin/longpo data run X/out/round-2/data.yaml",
        "HF_HUB_OFFLINE=1 X/bin/longpo convert import --model X/out/round-1/model --output X/out/round-2/start "
        "--overwrite --max-length 1088 --rope-theta 100000.0",
        "HF_HUB_OFFLINE=1 X/bin/nemo llm finetune --factory tiny_longpo --yes data.paths=X/out/round-2/data/shards "
        "data.seq_length=1088 resume.restore_config.path=X/out/round-2/start log.log_dir=X/out/round-2/training "
        "trainer.devices=2 trainer.max_steps=4",
        "HF_HUB_OFFLINE=1 X/bin/longpo convert export --checkpoint X/out/round-2/training "
        "--output X/out/round-2/model --overwrite",
        "HF_HUB_OFFLINE=1 X/bin/longpo eval before=X/base after=X/out/round-2/model --suite X/questions.jsonl "
        "--lengths 64 256 --samples 8 --seed 1234 --output X/out/round-2/evaluation",
    ]
    assert not (tmp_path / "out").exists()


def test_training_that_ends_before_its_last_step_is_not_exported(tmp_path, told):
    """Its program ends well: a signal has stopped it in its time of grace, or its own limit of time."""
    half = tmp_path / "out" / "round-1" / "training" / "longpo" / "checkpoints" / "global_step=2"
    for part in (*NEMO.parts, "weights/__0_0.distcp"):
        (half / part).parent.mkdir(parents=True, exist_ok=True)
        (half / part).write_text(part)
    (confirm,) = [
        step.confirm for step in evolution_steps(small_evolution.load(tmp_path, told)) if step.name == "train-1"
    ]
    with pytest.raises(InputError, match="is of step 2 of 4; the same command goes on from there"):
        confirm()
    half.rename(half.with_name("global_step=4"))
    confirm()


def test_training_is_started_by_a_launcher(tmp_path, told):
    told["train"] |= {"launcher": ["srun", "--nodes=2"], "env": {"THREADS": "1"}}
    told["rounds"][1]["train"] = {"launcher": ["srun", "--nodes=4"], "settings": {"trainer.devices": 8}}
    steps = {step.name: step for step in evolution_steps(small_evolution.load(tmp_path, told))}
    first, second = steps["train-1"], steps["train-2"]
    assert first.command[:5] == ("srun", "--nodes=2", f"{tmp_path}/bin/nemo", "llm", "finetune")
    assert second.command[:3] == ("srun", "--nodes=4", f"{tmp_path}/bin/nemo")
    assert first.env == second.env == {"HF_HUB_OFFLINE": "1", "THREADS": "1"}
    assert (steps["import-1"].command[0], steps["import-1"].env) == (f"{tmp_path}/bin/longpo", {"HF_HUB_OFFLINE": "1"})


def with_bridge(told: dict[str, Any]) -> dict[str, Any]:
    told["train"] = {
        "factory": "tiny_longpo",
        "trainer": "bridge",
        "processes": 2,
        "settings": {"train.train_iters": 4, "model.context_parallel_size": 2, "model.recompute_modules": ["mlp"]},
    }
    return told


def test_rounds_are_trained_with_megatron_bridge(tmp_path, told):
    steps = {step.name: step for step in evolution_steps(small_evolution.load(tmp_path, with_bridge(told)))}
    said = {name: " ".join(step.command).replace(str(tmp_path), "X") for name, step in steps.items()}
    assert said["import-2"] == (
        "X/bin/longpo convert import --model X/out/round-1/model --output X/out/round-2/start --overwrite "
        "--max-length 1088 --format bridge --rope-theta 100000.0"
    )
    assert said["train-2"] == (
        "X/bin/torchrun --nproc-per-node 2 -m nemo_longpo.bridge.train --recipe tiny_longpo --log-dir "
        'X/out/round-2/training dataset.paths=["X/out/round-2/data/shards"] dataset.seq_length=1088 '
        "checkpoint.pretrained_checkpoint=X/out/round-2/start model.context_parallel_size=2 "
        'model.recompute_modules=["mlp"] train.train_iters=4'
    )
    assert said["data-2"].startswith(f"{Path(sys.executable).parent}/longpo data run "), "NeMo-Run is not over there"
    assert steps["train-1"].settings == {
        "factory": "tiny_longpo",
        "trainer": "bridge",
        "seq_length": 320,
        "train.train_iters": 4,
    }


@pytest.mark.parametrize(
    ("change", "started"),
    [
        ({"processes": 1}, "X/bin/python -m nemo_longpo.bridge.train"),
        ({"processes": 1, "launcher": ["srun", "torchrun"]}, "srun torchrun -m nemo_longpo.bridge.train"),
    ],
    ids=["one process", "launcher"],
)
def test_what_starts_megatron_bridge(tmp_path, told, change, started):
    with_bridge(told)["train"] |= change
    steps = {step.name: step for step in evolution_steps(small_evolution.load(tmp_path, told))}
    said = " ".join(steps["train-1"].command).replace(str(tmp_path), "X")
    assert said.startswith(f"{started} --recipe tiny_longpo")


def test_commands_are_taken_by_the_tools(tmp_path, told):
    for step in evolution_steps(small_evolution.load(tmp_path, told)):
        if step.command and step.command[0].endswith("longpo"):
            build_parser().parse_args(step.command[1:])


def test_data_of_a_round_is_made_with_its_lengths(tmp_path, told):
    assert run(tmp_path, told) == 0
    first, second = (load_pipeline(tmp_path / f"out/round-{n}/data.yaml") for n in (1, 2))
    chunks = [pipeline.stages[0].call.values for pipeline in (first, second)]
    assert chunks == [
        {"chunk_tokens": 96, "max_document_tokens": 256},
        {"chunk_tokens": 192, "max_document_tokens": 1024},
    ]
    respond = second.stages[2]
    assert respond.call.values == {"engine": "vllm", "max_model_len": 1088, "rope_theta": 1e5}
    assert respond.launch.command == f"{tmp_path}/bin/python -m nemo_longpo.cli"
    assert {stage.call.model_given for stage in second.stages} - {None} == {tmp_path / "out/round-1/model"}
    assert (first.stages[0].call.model_given, first.stages[0].call.inputs) == (tmp_path / "base", ("hf:owner/books",))


def test_the_base_may_write_the_instructions_of_a_later_round(tmp_path, told):
    told["rounds"][1]["data"]["instruct"] = {"model": told["base"]}
    assert run(tmp_path, told) == 0
    second = load_pipeline(tmp_path / "out/round-2/data.yaml")
    writers = {stage.call.stage: stage.call.model_given for stage in second.stages}
    assert (writers["instruct"], writers["respond"]) == (tmp_path / "base", tmp_path / "out/round-1/model")
    recorded = read_records(tmp_path / "out")["data-2"].settings
    assert recorded["instruct.model"] == str(tmp_path / "base")
    told["rounds"][1]["data"]["instruct"] = {"model": str(tmp_path / "none")}
    with pytest.raises(InputError, match="none"):
        small_evolution.load(tmp_path, told)


def test_reference_of_a_round_is_the_model_of_the_one_before(tmp_path, told, capsys):
    assert run(tmp_path, told) == 0
    first = "model of (pairs of base + start of base 320)"
    assert (tmp_path / "out/round-1/model/content").read_text() == first
    assert (tmp_path / "out/round-2/model/content").read_text() == (
        f"model of (pairs of {first} + start of {first} 1088)"
    )
    assert f"round 2: 1,024 tokens, 5 pairs, short accuracy +0.00 points; {tmp_path}" in capsys.readouterr().out
    assert len(small_evolution.calls(tmp_path)) == 10
    assert run(tmp_path, told) == 0
    assert len(small_evolution.calls(tmp_path)) == 10


def change_rate(told: dict[str, Any]) -> None:
    told["train"]["settings"]["optim.config.lr"] = 1e-4


def change_second_base(told: dict[str, Any]) -> None:
    told["rounds"][1]["rope_theta"] = 2e5


def change_second_filter(told: dict[str, Any]) -> None:
    told["rounds"][1]["data"]["filter"] = {"max_similarity": 0.9}


def change_samples(told: dict[str, Any]) -> None:
    told["evaluate"]["samples"] = 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            change_rate,
            "step 'train-1' was run with optim.config.lr=unset (now 0.0001); give the old settings, another output, or "
            "--redo train-1, which also makes export-1, evaluate-1, gate-1, data-2, pairs-2, import-2, train-2, "
            "export-2, evaluate-2, gate-2 again",
        ),
        (
            change_second_base,
            "step 'data-2' was run with respond.rope_theta=100000.0 (now 200000.0); give the old settings, another "
            "output, or --redo data-2, which also makes pairs-2, train-2, export-2, evaluate-2, gate-2 again",
        ),
        (
            change_second_filter,
            "step 'data-2' was run with filter.max_similarity=unset (now 0.9); give the old settings, another output, "
            "or --redo data-2, which also makes pairs-2, train-2, export-2, evaluate-2, gate-2 again",
        ),
        (
            change_samples,
            "step 'evaluate-1' was run with samples=8 (now 9); give the old settings, another output, or --redo "
            "evaluate-1, which also makes gate-1 again",
        ),
    ],
)
def test_changed_setting_is_refused_by_name(tmp_path, told, capsys, change, message):
    assert run(tmp_path, told) == 0
    change(told)
    assert run(tmp_path, told) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"longpo: error: {message}"
    assert len(small_evolution.calls(tmp_path)) == 10


def test_machines_may_change(tmp_path, told):
    assert run(tmp_path, told) == 0
    told["train"]["settings"] |= {"trainer.devices": 8, "trainer.strategy.context_parallel_size": 8}
    told["train"]["env"] = {"OMP_NUM_THREADS": "1"}
    told["data"]["respond"]["processes"] = 4
    assert run(tmp_path, told) == 0
    assert len(small_evolution.calls(tmp_path)) == 10


def test_redo_makes_what_follows_again(tmp_path, told):
    assert run(tmp_path, told) == 0
    change_second_filter(told)
    assert run(tmp_path, told, "--redo", "data-2") == 0
    again = [" ".join(words[:3]) for words in small_evolution.calls(tmp_path)[10:]]
    assert [line.split(" before=")[0] for line in again] == [
        "longpo data run",
        "nemo llm finetune",
        "longpo convert export",
        "longpo eval",
    ]


def test_closed_gate_ends_the_rounds_with_status_1(tmp_path, told, capsys):
    (tmp_path / "results.json").write_text(json.dumps(small_evolution.results(-2.5)))
    for _ in range(2):
        assert run(tmp_path, told) == 1
        assert "longpo evolve: the gate is closed: accuracy on questions of up to 128 tokens fell by 2.50 points" in (
            capsys.readouterr().err
        )
        assert len(small_evolution.calls(tmp_path)) == 5
    told["gate"]["most_lost"] = 2.5
    (tmp_path / "results.json").write_text(json.dumps(small_evolution.results(1.0)))
    assert run(tmp_path, told) == 0
    assert len(small_evolution.calls(tmp_path)) == 10


def test_other_limit_decides_without_redo(tmp_path, told):
    assert run(tmp_path, told) == 0
    told["gate"]["fewest_pairs"] = 6
    assert run(tmp_path, told) == 1
    told["gate"]["fewest_pairs"] = 4
    assert run(tmp_path, told) == 0
    assert len(small_evolution.calls(tmp_path)) == 10


def test_too_few_pairs_stop_before_training(tmp_path, told, capsys):
    told["gate"]["fewest_pairs"] = 6
    assert run(tmp_path, told) == 1
    assert (
        "5 of 9 pairs are left after filtering (dropped_loop 29), and gate.fewest_pairs is 6" in capsys.readouterr().err
    )
    assert [words[1:3] for words in small_evolution.calls(tmp_path)] == [["data", "run"]]


def test_status_says_what_is_done(tmp_path, told, capsys):
    (tmp_path / "results.json").write_text(json.dumps(small_evolution.results(-3.0)))
    assert run(tmp_path, told) == 1
    capsys.readouterr()
    assert run(tmp_path, told, "--status", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    states = [(entry["step"], entry["state"]) for entry in said["steps"]]
    assert states == [
        *((f"{name}-1", "done") for name in STEPS[:-1]),
        ("gate-1", "to run"),
        *((f"{name}-2", "to run") for name in STEPS),
    ]
    assert [own.get("pairs") for own in said["rounds"]] == [5, None]
    assert run(tmp_path, told, "--status") == 0
    assert "gate-1      begun, to be continued" in capsys.readouterr().out
    assert len(small_evolution.calls(tmp_path)) == 5


def test_killed_run_continues_to_the_same_models(tmp_path, told):
    path = small_evolution.write(tmp_path, told)
    (tmp_path / "pause").touch()
    command = [sys.executable, "-m", "nemo_longpo.cli", "evolve", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until((tmp_path / "out/round-1/training/half").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = evolution_steps(small_evolution.load(tmp_path, told))
    with pytest.raises(InputError, match="a run is at work here, step 'train-1' in process"):
        run_steps(steps, tmp_path / "out")
    record = read_records(tmp_path / "out")["train-1"]
    os.killpg(record.process, signal.SIGKILL)  # the training outlived the run, and guarded its output
    (tmp_path / "pause").unlink()
    wait_until(lambda: not is_alive(record.process))
    assert main(["evolve", str(path)]) == 0
    first = "model of (pairs of base + start of base 320)"
    assert (tmp_path / "out/round-1/model/content").read_text() == first
    names = [" ".join(words[:3]) for words in small_evolution.calls(tmp_path)]
    assert [names.count(name) for name in ("longpo data run", "longpo convert import", "nemo llm finetune")] == [
        2,
        2,
        3,
    ]
