"""Kill processes of `longpo data run` at random, and compare the shards with those of an undisturbed run.

    python -m benchmarks.data.fault_run --documents 50 --kills 20

Runs all stages of `longpo data run` on documents and a small model made on the spot, twice: undisturbed, and with
SIGKILL sent at random moments to a random process of the run, every fifth time to the run itself with all that it
started. Then it compares every file of the shards. Writes fault_run.json and fault_run.md into --results.
"""

import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from support.small_corpus import make_document, save_stopping_model

from .. import RESULTS
from ..common.results import command, parser

STAGES = {
    "chunk": {"chunk_tokens": 96, "chunks_per_document": 2, "part_size": 2},
    "instruct": {
        "pool_size": 1,
        "check_requests": False,
        "max_new_tokens": 48,
        "temperature": 1.0,
        "processes": 2,
        "restarts": 100,
    },
    "respond": {"max_new_tokens": 96, "temperature": 1.0, "processes": 2, "restarts": 100},
    "filter": {},
    "score": {"processes": 2, "restarts": 100},
    "pack": {},
}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--documents", type=int, default=50)
    flags.add_argument("--kills", type=int, default=20)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--results", type=Path, default=RESULTS)
    arguments = flags.parse_args()
    work = Path(tempfile.mkdtemp(prefix="fault_run_"))
    try:
        prepare(work, arguments.documents)
        started = time.monotonic()
        run_once(work, "undisturbed")
        undisturbed = time.monotonic() - started
        started = time.monotonic()
        kills = run_and_kill(work, arguments.kills, random.Random(arguments.seed))
        result = {
            "command": command(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "documents": arguments.documents,
            "kills": kills,
            "seconds_undisturbed": round(undisturbed, 1),
            "seconds_with_kills": round(time.monotonic() - started, 1),
            "identical": digests(work / "undisturbed") == digests(work / "killed"),
            "shards": digests(work / "killed"),
        }
    finally:
        shutil.rmtree(work)
    write(result, arguments.results)
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["identical"] else 1)


def prepare(work: Path, documents: int) -> None:
    save_stopping_model(work / "model", "mistral")
    (work / "corpus").mkdir()
    for index in range(documents):
        (work / "corpus" / f"{index:03d}.txt").write_text(make_document(index, 6 + index % 7), encoding="utf-8")
    for name in ("undisturbed", "killed"):
        content = {"input": str(work / "corpus"), "model": str(work / "model"), "output": str(work / name)}
        (work / f"{name}.yaml").write_text(yaml.safe_dump(content | {"stages": STAGES}))


def start(work: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "nemo_longpo.cli", "data", "run", str(work / f"{name}.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def run_once(work: Path, name: str) -> None:
    status = start(work, name).wait()
    if status != 0:
        sys.exit(f"the {name} run failed with status {status}")


def run_and_kill(work: Path, kills: int, draw: random.Random) -> dict[str, int]:
    """Keep the run going until it succeeds; kill until all kills are spent."""
    spent = {"process": 0, "whole run": 0}
    run = start(work, "killed")
    while (status := wait(run, draw.uniform(2, 8))) != 0:
        if status is not None:  # it ended, killed or for want of restarts: the same command again
            run = start(work, "killed")
            continue
        workers = [child for child in psutil.Process(run.pid).children(recursive=True) if " data " in words(child)]
        if sum(spent.values()) == kills or not workers:
            continue
        if sum(spent.values()) % 5 == 4:
            victims, kind = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)], "whole run"
        else:
            victims, kind = [draw.choice(workers)], "process"
        for victim in victims:
            end(victim)
        spent[kind] += 1
    if sum(spent.values()) < kills:
        sys.exit(f"the run ended after {spent} kills; give more --documents")
    return spent


def wait(run: subprocess.Popen, seconds: float) -> int | None:
    try:
        return run.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def digests(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((output / "shards").iterdir())}


def write(result: dict[str, Any], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "fault_run.json").write_text(json.dumps(result, indent=2) + "\n")
    kills = ", ".join(f"{count} x {kind}" for kind, count in result["kills"].items())
    (directory / "fault_run.md").write_text(
        f"`{result['command']}` on {result['machine']}\n\n"
        "| documents | killed | seconds undisturbed | seconds with kills | shards byte-identical |\n"
        "|---|---|---|---|---|\n"
        f"| {result['documents']} | {kills} | {result['seconds_undisturbed']} | {result['seconds_with_kills']} "
        f"| {'yes' if result['identical'] else 'NO'} |\n"
    )


if __name__ == "__main__":
    main()
