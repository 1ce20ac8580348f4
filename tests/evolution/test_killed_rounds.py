"""`longpo evolve` with the real data stages, killed at random moments with all that it has started: the weights in the
end are those of an undisturbed run.

Training, conversion and evaluation are stand-ins that continue as the real ones do, which have such tests of their own:
importing NeMo for each of their starts would take minutes.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from support import small_evolution
from support.waiting import wait_until

from nemo_longpo.recipes.demo.corpus import write_corpus
from nemo_longpo.recipes.demo.one_round import BASE_MODEL, PROMPTS

KILLS = 4
# Trains in steps, each of which depends on the one before and on every byte of the pairs, and continues after a kill.
_TRAINER = f"""#!{sys.executable} -S
import glob, hashlib, json, os, sys, time
pairs = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = pairs["log.log_dir"]
os.makedirs(folder, exist_ok=True)
shards = b"".join(open(path, "rb").read() for path in sorted(glob.glob(pairs["data.paths"] + "/*.arrow")))
start = open(pairs["resume.restore_config.path"] + "/content").read()
state = dict(step=0, weights=hashlib.sha256(start.encode()).hexdigest())
if os.path.exists(folder + "/state"):
    state = json.load(open(folder + "/state"))
assert shards
while state["step"] < int(pairs["trainer.max_steps"]):
    text = json.dumps(state).encode()
    state = dict(step=state["step"] + 1, weights=hashlib.sha256(text + shards).hexdigest())
    open(folder + "/new", "w").write(json.dumps(state))
    os.rename(folder + "/new", folder + "/state")
    time.sleep(0.1)
open(folder + "/content", "w").write(state["weights"])
"""


@pytest.fixture
def told(tmp_path, programs):
    """One round from the demo's model, whose data are made by the real commands."""
    stand_ins = small_evolution.programs(tmp_path)
    (stand_ins / "nemo").write_text(_TRAINER)
    (stand_ins / "longpo").rename(stand_ins / "stand-in")
    real = f'[ "$1" = data ] && exec {programs}/longpo "$@"'
    (stand_ins / "longpo").write_text(f'#!/bin/bash\n{real}\nexec {stand_ins}/stand-in "$@"\n')
    (stand_ins / "longpo").chmod(0o755)
    told = small_evolution.content(tmp_path)
    write_corpus(tmp_path / "documents.jsonl", 6, 200, seed=1)
    base = tmp_path / "base"
    (base / "config.json").unlink()
    for path in Path(BASE_MODEL).iterdir():
        (base / path.name).symlink_to(path)
    told |= {"input": [str(tmp_path / "documents.jsonl")], "prompts": str(PROMPTS), "rounds": told["rounds"][:1]}
    told["data"] = {
        "chunk": {"chunk_tokens": 96, "chunks_per_document": 2, "part_size": 2},
        "instruct": {"pool_size": 1, "max_new_tokens": 8},
        "respond": {"max_new_tokens": 8},
        "filter": {"drop_identical": False, "keep_truncated": "rejected", "max_similarity": 1.0},
        "score": None,
        "pack": None,
    }
    told["gate"]["fewest_pairs"] = 1
    told["train"]["settings"]["trainer.max_steps"] = 20
    told["environments"]["data"] = str(programs)
    return told


def start(folder, told, output):
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(told | {"output": str(output)}))
    with (folder / f"{output.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "nemo_longpo.cli", "evolve", str(path)],
            stdout=log,
            stderr=log,
            env=os.environ | {"NEMORUN_HOME": str(folder / "nemo_run")},
        )


def kill(process, nemo_process):
    """End a process and all that it has started, at once and without a chance to clean up."""
    for own in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(ProcessLookupError):
            os.kill(own.pid, signal.SIGKILL)
    process.wait()
    nemo_process.wait_for_forks()


def files(output):
    return sum(len(names) for _, _, names in os.walk(output))


@pytest.mark.slow
def test_killed_rounds_end_with_the_same_weights(tmp_path, nemo_process, told):
    assert start(tmp_path, told, tmp_path / "calm").wait() == 0, (tmp_path / "calm.log").read_text()
    draw = random.Random(0)
    killed = tmp_path / "killed"
    for moment in sorted(draw.sample(range(1, int(0.9 * files(tmp_path / "calm"))), KILLS)):
        process = start(tmp_path, told, killed)
        wait_until(lambda: files(killed) >= moment or process.poll() is not None)  # noqa: B023
        assert process.poll() is None, (tmp_path / "killed.log").read_text()
        time.sleep(draw.uniform(0, 0.2))
        kill(process, nemo_process)
    assert start(tmp_path, told, killed).wait() == 0, (tmp_path / "killed.log").read_text()
    weights = [(tmp_path / name / "round-1/model/content").read_text() for name in ("calm", "killed")]
    assert weights[0] == weights[1]
    assert len(weights[0]) > 64
