"""A file of `longpo evolve` for a small model, and stand-ins for the programs of its environments."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from nemo_longpo.evolution.evolution_file import load_evolution
from nemo_longpo.evolution.evolution_settings import Evolution

# Does what a step must: writes its output from what it reads, and a line in `calls`. With `pause`, training waits once.
_STAND_IN = f"""#!{sys.executable} -S
import json, os, sys, time
home = os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0])))
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
open(home + "/calls", "a").write(json.dumps(words) + "\\n")
option = lambda name: words[words.index(name) + 1]
pairs = dict(word.split("=", 1) for word in words if "=" in word)
def read(folder):
    return open(folder + "/content").read()
def write(folder, text, **files):
    os.makedirs(folder, exist_ok=True)
    for name, content in {{"content": text, **files}}.items():
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        open(os.path.join(folder, name), "w").write(content)
def outputs():
    if words[1:3] == ["data", "run"]:
        lines = open(words[3]).read().splitlines()
        told = dict(line.split(": ", 1) for line in lines if line.startswith(("model: ", "output: ")))
        counts = json.dumps(dict(documents_in=9, documents_out=5, turns_in=36, turns_out=7, dropped_loop=29))
        write(told["output"], "pairs of " + read(told["model"]), **{{"filter/report.json": counts}})
    elif words[1:3] == ["data", "score"]:
        write(os.path.dirname(option("--output")), "long " + read(os.path.dirname(option("--pairs"))))
        write(option("--output"), "")
    elif words[1:3] == ["convert", "import"]:
        write(option("--output"), "start of " + read(option("--model")) + " " + option("--max-length"))
    elif words[1:3] == ["llm", "finetune"]:
        folder = pairs["log.log_dir"]
        if os.path.exists(home + "/pause") and not os.path.exists(folder + "/half"):
            write(folder, "", half="")
            time.sleep(600)
        data = os.path.dirname(pairs["data.paths"])
        write(folder, "(" + read(data) + " + " + read(pairs["resume.restore_config.path"]) + ")")
    elif words[1:3] == ["convert", "export"]:
        write(option("--output"), "model of " + read(option("--checkpoint")))
    else:
        write(option("--output"), "", **{{"results.json": open(home + "/results.json").read()}})
outputs()
"""


def programs(folder: Path) -> Path:
    """Write a `bin` directory whose programs write small outputs; returns it. What they read is in `folder`."""
    bin_directory = folder / "bin"
    bin_directory.mkdir()
    for name in ("python", "longpo", "nemo", "torchrun"):
        (bin_directory / name).write_text(_STAND_IN)
        (bin_directory / name).chmod(0o755)
    (folder / "results.json").write_text(json.dumps(results(0.0)))
    return bin_directory


def results(short: float) -> dict[str, Any]:
    """The parts of a results.json that a gate reads: accuracy at 64 tokens changed by so many points, at 256 by 40."""
    lengths = [
        {"length": length, "differences": [{"model": "after", "minus": "before", "mean": mean}]}
        for length, mean in ((64, short), (256, 40.0))
    ]
    return {"format": "longpo eval results 1", "groups": [{"name": "long", "differences": [], "by_length": lengths}]}


def calls(folder: Path) -> list[list[str]]:
    """Return the commands that the programs were started with."""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def content(folder: Path) -> dict[str, Any]:
    """Return the content of a file of two rounds, 256 and 1,024 tokens."""
    base = folder / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "max_position_embeddings": 256,
                "rope_theta": 1000.0,
                "hidden_size": 8,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 64,
                "vocab_size": 32,
            }
        )
    )
    (base / "content").write_text("base")
    (folder / "questions.jsonl").touch()
    bin_directory = str(folder / "bin")
    return {
        "base": str(base),
        "output": str(folder / "out"),
        "input": ["hf:owner/books"],
        "environments": {"data": bin_directory, "train": bin_directory, "eval": bin_directory},
        "env": {"HF_HUB_OFFLINE": "1"},
        "branch_tokens": 64,
        "data": {
            "chunk": {"chunk_tokens": 96},
            "instruct": None,
            "respond": {"engine": "vllm", "processes": 2},
            "filter": None,
            "score": None,
            "pack": None,
        },
        "train": {"factory": "tiny_longpo", "settings": {"trainer.max_steps": 4, "trainer.devices": 2}},
        "evaluate": {"suite": [str(folder / "questions.jsonl")], "lengths": [64, 256], "samples": 8},
        "gate": {"most_lost": 2.0, "short_tokens": 128, "fewest_pairs": 5},
        "rounds": [
            {"length": 256, "rope_theta": 1e4},
            {"length": 1024, "rope_theta": 1e5, "data": {"chunk": {"chunk_tokens": 192}}},
        ],
    }


def write(folder: Path, told: dict[str, Any]) -> Path:
    path = folder / "evolve.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def load(folder: Path, told: dict[str, Any]) -> Evolution:
    return load_evolution(write(folder, told))
