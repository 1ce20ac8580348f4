"""Stand-ins for the programs of Slurm: they keep jobs as files, and run their batch scripts on this machine."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from nemo_longpo.launching import slurm_jobs

# Jobs lie in `jobs` beside the `bin` of the programs. Files beside it: while there is `hold`, jobs are pending; with
# `refuse`, sbatch fails; with `forget`, sacct knows nothing; each line of `ends` is the state that one job ends with.
_PROGRAM = f"""#!{sys.executable} -S
import glob, json, os, re, signal, subprocess, sys, time
home = os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0])))
jobs, here = home + "/jobs", lambda name: os.path.exists(home + "/" + name)
me, words = os.path.basename(sys.argv[0]), sys.argv[1:]
def option(name):
    found = [word.split("=", 1)[1] for word in words if word.startswith(name + "=")]
    return found[0] if found else None
def read(number):
    return json.load(open(f"{{jobs}}/{{number}}.json"))
def save(job):
    path = f"{{jobs}}/{{job['number']}}.json"
    open(path + ".new", "w").write(json.dumps(job))
    os.rename(path + ".new", path)
def chosen():
    everything = [read(os.path.basename(path)[:-5]) for path in sorted(glob.glob(jobs + "/*.json"))]
    numbers = (option("--jobs") or "").split(",")
    return [job for job in everything if job["number"] in numbers or job["name"] == option("--name")]
def sbatch():
    if here("refuse"):
        sys.exit("sbatch: error: invalid partition specified: " + words[-1][-9:])
    os.makedirs(jobs, exist_ok=True)
    script = open(words[-1]).read()
    flags = dict(re.findall("^#SBATCH --([a-z-]+)=(.*)$", script, re.M))
    number = str(101 + len(glob.glob(jobs + "/*.json")))
    save(dict(number=number, name=flags["job-name"].strip("'"), state="PENDING", script=words[-1], process=0))
    sys.stdout.flush()
    if os.fork() == 0:
        os.setsid()
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        run(read(number), flags)
        os._exit(0)
    print(number)
def run(job, flags):
    job["process"] = os.getpid()
    save(job)
    while here("hold"):
        time.sleep(0.05)
    save({{**job, "state": "RUNNING"}})
    output = open(flags["output"].strip("'").replace("%j", job["number"]), "ab")
    variables = dict(SLURM_JOB_ID=job["number"], SLURM_JOB_NODELIST="node", SLURM_NODEID="0")
    status = subprocess.call(["bash", job["script"]], env=os.environ | variables, stdout=output, stderr=output)
    state = "FAILED" if status else "COMPLETED"
    if here("ends"):
        state, *rest = open(home + "/ends").read().splitlines()
        open(home + "/ends", "w").write("\\n".join(rest)) if rest else os.remove(home + "/ends")
    save({{**job, "state": state}})
def srun():
    given, rest = dict(), list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if "=" not in word:
            given[word] = rest.pop(0)
    if rest[0] == "hostname":
        return print("127.0.0.1")
    mounts = [mount.split(":") for mount in given.get("--container-mounts", "").split(",") if mount]
    inside = [source for source, target in mounts if target == "/nemo_run"]
    command = [word.replace("/nemo_run", inside[0]) if inside else word for word in rest]
    open(home + "/started", "a").write(json.dumps([given, command]) + "\\n")
    output = open(given["--output"].replace("%j", os.environ["SLURM_JOB_ID"]), "ab")
    sys.exit(subprocess.call(command, stdout=output, stderr=output, cwd=given.get("--chdir")))
def squeue():
    living = [job for job in chosen() if job["state"] in ("PENDING", "RUNNING")]
    form = "{{number}}|{{state}}" if "T" in option("--format") else "{{number}}"
    print(*(form.format(**job) for job in living), sep="\\n")
    sys.exit(0 if living or option("--name") else "slurm_load_jobs error: Invalid job id specified")
def sacct():
    if not here("forget"):
        print(*(f"{{job['number']}}|{{job['state']}}" for job in chosen()), sep="\\n")
def scancel():
    job = read(words[0])
    os.killpg(job["process"], signal.SIGKILL)
    save({{**job, "state": "CANCELLED by 1000"}})
def scontrol():
    print("node")
globals()[me]()
"""
PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "srun", "scontrol")


def install(folder: Path) -> Path:
    """Write the programs to `folder/bin`, which is to stand in front of PATH; return it."""
    directory = folder / "bin"
    directory.mkdir(parents=True)
    for name in PROGRAMS:
        (directory / name).write_text(_PROGRAM)
        (directory / name).chmod(0o755)
    return directory


def jobs(folder: Path) -> list[dict[str, Any]]:
    """Return the jobs that were submitted: number, name, state, script."""
    return [json.loads(path.read_text()) for path in sorted((folder / "jobs").glob("*.json"))]


def started(folder: Path) -> list[tuple[dict[str, str], list[str]]]:
    """Return the options and the command of each `srun`."""
    return [tuple(json.loads(line)) for line in (folder / "started").read_text().splitlines()]


def use(monkeypatch: Any, folder: Path) -> Path:
    """Put the stand-ins in front of PATH, NeMo-Run's notes into `folder`, and poll often; return their folder.

    Commands that the test starts inherit the first two.
    """
    scheduler = importlib.import_module("nemo_run.run.torchx_backend.schedulers.slurm")
    home = folder / "slurm"
    monkeypatch.setenv("PATH", str(install(home)), prepend=":")
    monkeypatch.setenv("NEMORUN_HOME", str(folder / "nemo_run"))
    monkeypatch.setattr(scheduler, "SLURM_JOB_DIRS", str(folder / "nemo_run/jobs"))
    monkeypatch.setattr(slurm_jobs, "_FIRST_POLL", 0.05)
    return home
