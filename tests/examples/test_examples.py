"""Every file of examples/ is parsed or run, so that renamed stages, flags or settings are found."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_corpus import save_stopping_model

from nemo_longpo import setting_names
from nemo_longpo.cli import build_parser, main
from nemo_longpo.data_tools.pipeline.config import load_pipeline
from nemo_longpo.evaluation import data_files, questions, suites
from nemo_longpo.evaluation.results import verdict
from nemo_longpo.shards.reader import ShardReader

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# Stands for a program of a GPU machine: it notes its words, and starts the program among them, if there is one.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps([name, *words]), file=file)
if name == "scontrol":
    print("node1\\nnode2")
inner = next((place for place, word in enumerate(words) if word in ("torchrun", "nemo")), None)
if name in ("srun", "torchrun") and inner is not None:
    os.execvp(words[inner], words[inner:])
"""


def calls_of(script: str, folder: Path, **variables: str) -> list[list[str]]:
    """Run a shell script in `folder` with stand-ins for all programs; returns the commands that it gave."""
    programs, calls = folder / "bin", folder / "calls"
    programs.mkdir()
    for name in ("longpo", "nemo", "srun", "torchrun", "scontrol"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), **variables}
    done = subprocess.run(["bash", EXAMPLES / script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in calls.read_text().splitlines()]


def test_readme_lists_every_file():
    listed = re.findall(r"^\| \[(.+?)\]\((.+?)\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert {name for name, _ in listed} == {target for _, target in listed} == files


def test_pipeline_file_is_parsed():
    pipeline = load_pipeline(EXAMPLES / "data.yaml")
    names = [stage.call.stage for stage in pipeline.stages]
    assert names == ["chunk", "instruct", "respond", "filter", "score", "pack"]
    for stage in pipeline.stages:
        build_parser().parse_args(stage.call.words())
    assert all("CUDA_VISIBLE_DEVICES" in stage.env for stage in pipeline.stages if stage.call.values.get("engine"))


def test_own_pairs_become_shards(tmp_path):
    """By the commands of the README, with a small model."""
    model = save_stopping_model(tmp_path / "MODEL", "qwen2")
    readme = (EXAMPLES / "README.md").read_text()
    for line in re.findall(r"^longpo data .*$", readme, re.MULTILINE):
        places = {"MODEL": str(model), "examples/own_pairs.jsonl": str(EXAMPLES / "own_pairs.jsonl")}
        words = [places.get(word, word.replace("work/", f"{tmp_path}/work/")) for word in shlex.split(line)[1:]]
        assert main([*words, "--engine=transformers"] if "score" in words else words) == 0
    records = list(ShardReader(tmp_path / "work" / "shards"))
    assert [(record.doc_id, record.turns) for record in records] == [("lighthouse", 2), ("bakery", 1)]
    assert all((record.chunk_spans[:, 1] > record.chunk_spans[:, 0]).all() for record in records)


def test_one_node_script_runs_all_commands(tmp_path):
    commands = calls_of("train_128k.sh", tmp_path)
    assert [words[:3] for words in commands if words[0] == "longpo"] == [
        ["longpo", "plan", "--model"],
        ["longpo", "convert", "import"],
        ["longpo", "convert", "export"],
    ]
    for words in commands:
        if words[0] == "longpo":
            build_parser().parse_args(words[1:])
    assert settings_of(commands)["data.paths"] == "work/shards"
    (tmp_path / "run_128k" / "start").mkdir(parents=True)
    (tmp_path / "calls").unlink()
    again = tmp_path / "again"
    again.mkdir()
    (again / "run_128k" / "start").mkdir(parents=True)
    assert ["longpo", "convert", "import"] not in [words[:3] for words in calls_of("train_128k.sh", again)]


def test_script_of_megatron_bridge_trains_what_the_other_trains(tmp_path):
    """By the names that its settings have with NeMo; tests/bridge holds them to the recipe."""
    commands = calls_of("train_128k_bridge.sh", tmp_path)
    for words in commands:
        if words[0] == "longpo":
            build_parser().parse_args(words[1:])
    (torchrun,) = (words for words in commands if words[0] == "torchrun")
    assert torchrun[1:6] == [
        "--nproc-per-node=8",
        "-m",
        "nemo_longpo.bridge.train",
        "--recipe",
        "mistral_7b_longpo_128k",
    ]
    given = dict(word.split("=", 1) for word in torchrun[8:])
    (tmp_path / "other").mkdir()
    other = calls_of("train_128k.sh", tmp_path / "other")
    settings = {setting_names.translate_name(name): value for name, value in settings_of(other).items()}
    assert given["train.train_iters"] == settings["train.train_iters"]
    assert given["dataset.paths"] == f"[{settings['dataset.paths']}]"
    (imported,) = (words for words in other if words[:3] == ["longpo", "convert", "import"])
    policy = build_parser().parse_args(imported[1:])
    assert (float(given["model.rotary_base"]), int(given["model.seq_length"])) == (policy.rope_theta, policy.max_length)


def test_evaluation_script_fetches_looks_and_measures(tmp_path):
    commands = [words for words in calls_of("evaluate.sh", tmp_path) if words[0] == "longpo"]
    parsed = [build_parser().parse_args(words[1:]) for words in commands]
    assert [(one.fetch, one.dry_run, one.samples) for one in parsed] == [
        (True, False, None),
        (False, True, None),
        (False, False, 20),
        (False, False, None),
    ]
    for one in parsed[1:]:
        assert one.models == ["before=models/Mistral-7B-Instruct-v0.2", "after=run_128k/model"]
        assert len({row.ability for row in suites.choose([one.suite])}) == 2
    assert len(verdict.parse_conditions(parsed[3].fail_if, suites.choose(["paper"]), 2)) == 2


def test_questions_of_ones_own_are_read():
    rows = list(data_files.typed_rows(EXAMPLES / "questions.jsonl", questions._Line))
    assert [len(row.answers) for _, row in rows] == [1, 1, 2]


def test_cluster_script_starts_one_torchrun_per_node(tmp_path):
    from torch.distributed.run import get_args_parser

    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    commands = calls_of("train_512k.sbatch", tmp_path, IMAGE="longpo.sqsh", DATA="/data", **slurm)
    assert [words[0] for words in commands] == ["scontrol", "srun", "torchrun", "nemo"]
    torchrun = get_args_parser().parse_args(commands[2][1:])
    assert (torchrun.nnodes, torchrun.nproc_per_node, torchrun.rdzv_endpoint) == ("2", "8", "node1:29500")
    assert (torchrun.no_python, torchrun.training_script) == (True, "nemo")
    assert settings_of(commands)["log.log_dir"] == "run_512k"


def settings_of(commands: list[list[str]]) -> dict[str, str]:
    """The overrides of the one `nemo llm finetune`."""
    (words,) = (words for words in commands if words[0] == "nemo")
    assert words[:4] == ["nemo", "llm", "finetune", "--factory"]
    assert words[5] == "--yes"
    return dict(word.split("=", 1) for word in words[6:])


@pytest.mark.distributed
@pytest.mark.parametrize("script", ["train_128k.sh", "train_512k.sbatch"])
def test_nemo_takes_the_scripts_settings(script, tmp_path, programs):
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "IMAGE": "longpo.sqsh"}
    (command,) = (words for words in calls_of(script, tmp_path, **slurm) if words[0] == "nemo")
    done = subprocess.run([programs / "nemo", *command[1:], "--dryrun"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for setting in settings_of([command]).values():
        assert setting in done.stdout


@pytest.mark.distributed
def test_python_script_trains_two_steps(tmp_path, programs):
    from support import tiny_models, training_pairs

    from nemo_longpo.checkpoints.run_directory import read_metrics
    from nemo_longpo.conversion.importer import import_checkpoint

    model = tiny_models.save_tiny(tmp_path / "model", "qwen2")
    tokenizer = tiny_models.tiny_tokenizer(tiny_models.DEFAULT_STYLE["qwen2"])
    vocab = tiny_models.tiny_model("qwen2", tokenizer).config.vocab_size
    shards = training_pairs.write_shards(tmp_path / "shards", training_pairs.uneven_records(vocab), tokenizer, vocab)
    checkpoint = import_checkpoint(model, tmp_path / "start")
    words = ["--checkpoint", checkpoint, "--shards", shards, "--output", tmp_path / "run", "--steps", "2"]
    command = [programs / "python", EXAMPLES / "train.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [step["step"] for step in read_metrics(tmp_path / "run")] == [1, 2]
