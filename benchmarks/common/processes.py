"""Measurements in fresh processes, each alone on the machine: of themselves, or watched from outside. Linux."""

import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import ROOT

THREADS = 2
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
}
MB = 1e6
WEIGHTS = (".safetensors", ".distcp")
INTERVAL = 0.02  # seconds between two looks, more where a look takes long


def measured_steps(python: str, child: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Run `benchmarks.children.CHILD` on a job; returns the JSON of its last line, one object per training step.

    Raises:
        SystemExit: the child failed; with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="job_") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job | {"folder": folder}))
        command = [python, "-m", f"benchmarks.children.{child}", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{child} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def watch(command: Sequence[str], target: Path, log: Path, limit_mb: float) -> dict[str, Any]:
    """Run a command that writes a model to `target` to its end, or until its processes hold more than `limit_mb`.

    `peak_mb` is the kernel's own note of the most a process had in memory (VmHWM), mapped pages of files included, of
    the largest process. `held_mb` is what all processes together had to themselves (anonymous and shared memory, pages
    shared after a fork counted once), looked at up to 50 times a second: pages of files are the kernel's to take back
    at any time. `seconds` end with the command, `stored_seconds` when all that was written has reached the disk; the
    disk has nothing left to write at the start. `writing_seconds` are from the first file of weights, in `target` or
    beside it, until there is a `target`: for a command that renames what is complete and on the disk.

    Raises:
        SystemExit: the command failed; with the end of what it wrote.
    """
    os.sync()
    before, start = _cpu_seconds(), time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | ENVIRONMENT, start_new_session=True
        )
    try:
        found = _follow(process, target, limit_mb)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    end = time.perf_counter()
    os.sync()
    stopped = found["held_mb"] > limit_mb
    if process.returncode and not stopped:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-4000:]}")
    stored = time.perf_counter()
    return {
        "seconds": end - start,
        "stored_seconds": stored - start,
        "writing_seconds": found.pop("complete", end) - found.pop("first_file", end),
        "cpu_seconds": _cpu_seconds() - before,
        "stopped": stopped,
    } | found


def _follow(process: subprocess.Popen[bytes], target: Path, limit_mb: float) -> dict[str, float]:
    found = {"peak_mb": 0.0, "held_mb": 0.0}
    while process.poll() is None and found["held_mb"] <= limit_mb:
        start = time.perf_counter()
        if "first_file" not in found and any(path.suffix in WEIGHTS for path in target.parent.rglob("*")):
            found["first_file"] = start
        if "first_file" in found and "complete" not in found and target.exists():
            found["complete"] = start
        pids = family(process.pid)
        found["peak_mb"] = max(found["peak_mb"], *(_fields(pid, "status").get("VmHWM", 0.0) for pid in pids))
        found["held_mb"] = max(found["held_mb"], _held(pids))
        time.sleep(max(INTERVAL, 10 * (time.perf_counter() - start)))
    return found


def _held(pids: list[int]) -> float:
    """The kernel's division of shared pages takes milliseconds per GB: only where there is something to divide."""
    if len(pids) == 1:
        found = _fields(pids[0], "status")
        return found.get("RssAnon", 0.0) + found.get("RssShmem", 0.0)
    every = [_fields(pid, "smaps_rollup") for pid in pids]
    return sum(found.get("Pss_Anon", 0.0) + found.get("Pss_Shmem", 0.0) for found in every)


def family(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return [pid]
    return [pid, *(below for child in children for below in family(child))]


def _fields(pid: int, name: str) -> dict[str, float]:
    """Lines `Name:  123 kB` of a file in /proc, in MB (10⁶ bytes); none if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 / MB for name, value in pairs}


def _cpu_seconds() -> float:
    """Of all ended processes that this one started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
