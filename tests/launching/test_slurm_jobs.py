"""Batch scripts word for word, and jobs that are watched, killed, lost and found again, on stand-ins for Slurm."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import fake_slurm
from support.waiting import wait_until

from nemo_longpo.errors import InputError
from nemo_longpo.launching import executors, slurm_jobs

pytestmark = pytest.mark.slow  # importing NeMo-Run takes seconds

TEAM = {"type": "SlurmExecutor", "account": "team", "partition": "gpus", "time": "04:00:00"}
NODES = {"nodes": 2, "ntasks_per_node": 8, "gpus_per_node": 8}
IMAGE = {"container_image": "/images/longpo.sqsh", "container_mounts": ["/data:/data"]}
SCRIPT = """\
#SBATCH --account=team
#SBATCH --gpus-per-node=8
#SBATCH --job-name=longpo.train-1-HASH
#SBATCH --nodes=2
#SBATCH --ntasks-per-node={tasks}
#SBATCH --open-mode=append
#SBATCH --output=/data/out/runs/JOB/sbatch_longpo.train-1-HASH_%j.out
#SBATCH --partition=gpus
#SBATCH --time=04:00:00
nodes=( $( scontrol show hostnames $SLURM_JOB_NODELIST ) )
nodes_array=($nodes)
head_node=${{nodes_array[0]}}
head_node_ip=$(srun --nodes=1 --ntasks=1 -w "$head_node" hostname --ip-address)
export http_proxy='http://proxy with=blank'
export THREADS=1
srun --output /data/out/runs/JOB/log-longpo.train-1-HASH_%j_${{SLURM_RESTART_COUNT:-0}}.out {place} \
--wait=60 --kill-on-bad-exit=1 {command}"""
TORCHRUN = (
    "torchrun --rdzv-backend c10d --rdzv-endpoint $head_node_ip:29500 --rdzv-id N --nnodes 2 --nproc-per-node 8 "
    "--node-rank $SLURM_NODEID --tee 3 --no-python nemo llm finetune --factory 'a(b=1)' x=1"
)
CONTAINER = (
    "--container-image /images/longpo.sqsh --container-mounts /data:/data,/data/out/runs/JOB:/nemo_run "
    "--container-workdir /nemo_run/code --container-env http_proxy,THREADS"
)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of the stand-ins, which are in front of PATH."""
    return fake_slurm.use(monkeypatch, tmp_path)


@pytest.fixture
def executor():
    return executors.make_executor(TEAM, "executors.gpus")


def task(line, name="train-1", **env):
    return executors.Task(name, line, env)


def run(line, executor, folder, watched=None):
    (ended,) = slurm_jobs.run_tasks([task(line)], executor, folder, (watched if watched is not None else []).append)
    return ended


def lines(script):
    """The lines of a batch script that say what, where and how; what differs between two submissions is named."""
    script = re.sub(r"experiments/\S+?/train-1-[0-9a-f]{8}(?=[/:])", "JOB", script)
    script = re.sub(r"train-1-[0-9a-f]{8}", "train-1-HASH", script)
    script = re.sub(r"--rdzv-id \d+", "--rdzv-id N", script)
    wanted = r"#SBATCH|nodes|head_node|export (?!PYTHON|SLURM|TORCHX|LOGLEVEL)|srun|nemo"
    return "\n".join(line for line in script.splitlines() if re.match(wanted, line))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"launcher": "torchrun", **IMAGE}, {"tasks": 1, "place": CONTAINER, "command": TORCHRUN}),
        (
            IMAGE,
            {
                "tasks": 8,
                "place": CONTAINER,
                "command": "bash /nemo_run/scripts/train-1-HASH.sh\nnemo llm finetune --factory 'a(b=1)' x=1",
            },
        ),
        ({"launcher": "torchrun"}, {"tasks": 1, "place": "--chdir /data/out/runs/JOB/code", "command": TORCHRUN}),
    ],
    ids=["torchrun in a container", "a task a GPU in a container", "torchrun"],
)
def test_batch_script(tmp_path, settings, expected):
    made = executors.make_executor(TEAM | NODES | settings, "executors.gpus")
    own = task("nemo llm finetune --factory 'a(b=1)' x=1", http_proxy="http://proxy with=blank", THREADS="1")
    assert lines(slurm_jobs.batch_script(own, made, Path("/data/out/runs"))) == SCRIPT.format(**expected)
    assert made.ntasks_per_node == 8  # the executor is used again


def test_job_is_watched_to_its_end(tmp_path, slurm, executor, capfd):
    watched = []
    ended = run("echo one $((1 + 1)); touch written; pwd", executor, tmp_path / "runs", watched)
    assert (ended.state, ended.said.split("\n")[0]) == ("COMPLETED", "one 2")
    assert {text.split(" ", 2)[2] for text in watched} <= {"submitted", "pending", "running"}
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"train-1: Slurm job 101, its logs in \S+\n", err)
    assert slurm_jobs.run_tasks([task("true")], executor, tmp_path / "runs", watched.append)
    assert [job["number"] for job in fake_slurm.jobs(slurm)] == ["101", "102"]


def test_image_is_where_the_command_runs(tmp_path, slurm):
    made = executors.make_executor(TEAM | IMAGE, "x")
    slurm_jobs.run_tasks([task("echo $A", A="x y")], made, tmp_path / "runs", print)
    ((options, _),) = fake_slurm.started(slurm)
    assert options["--container-image"] == "/images/longpo.sqsh"
    assert options["--container-mounts"].startswith("/data:/data,")


def test_failure_is_noticed(tmp_path, slurm, executor):
    ended = run("echo 'longpo: error: no such shard'; exit 3", executor, tmp_path / "runs")
    assert (ended.state, ended.said) == ("FAILED", "longpo: error: no such shard\n")


def test_several_tasks_end_each_in_its_way(tmp_path, slurm, executor):
    tasks = [task("true", "respond-0"), task("exit 1", "respond-1")]
    ended = slurm_jobs.run_tasks(tasks, executor, tmp_path / "runs", print)
    assert [own.state for own in ended] == ["COMPLETED", "FAILED"]


def test_refused_job_leaves_no_record(tmp_path, slurm, executor):
    (slurm / "refuse").touch()
    with pytest.raises(InputError, match=r"Slurm does not take the job train-1-\w+ \(sbatch: error: invalid partition"):
        run("true", executor, tmp_path / "runs")
    (slurm / "refuse").unlink()
    assert run("true", executor, tmp_path / "runs").state == "COMPLETED"
    assert len(fake_slurm.jobs(slurm)) == 1


CHILD = """
import json, sys
from pathlib import Path
from nemo_longpo.launching import executors, slurm_jobs
made = executors.make_executor(json.loads(sys.argv[1]), "x")
slurm_jobs.run_tasks([executors.Task("train-1", "sleep 0.2; echo done")], made, Path(sys.argv[2]), print)
"""


@pytest.mark.parametrize(
    ("state", "ending"), [("pending", signal.SIGKILL), ("running", signal.SIGKILL), ("pending", signal.SIGINT)]
)
def test_killed_command_finds_its_job_again(tmp_path, slurm, executor, capfd, state, ending):
    (slurm / "hold").touch()
    words = [sys.executable, "-c", CHILD, json.dumps(TEAM), str(tmp_path / "runs")]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while "job 101 pending" not in child.stdout.readline():
        assert child.poll() is None
    if state == "running":
        (slurm / "hold").unlink()
    child.send_signal(ending)
    _, err = child.communicate()
    assert ("`scancel 101` ends it" in err) == (ending == signal.SIGINT)
    (slurm / "hold").unlink(missing_ok=True)
    ended = run("echo another", executor, tmp_path / "runs")
    assert (ended.state, ended.said) == ("COMPLETED", "done\n")
    assert len(fake_slurm.jobs(slurm)) == 1
    assert "train-1: Slurm job 101 was submitted before; it is watched further" in capfd.readouterr().err


def wait_for(state, slurm):
    wait_until(lambda: fake_slurm.jobs(slurm)[0]["state"] == state)


def unseen(executor, folder, line="sleep 60"):
    """Submit a job and lose sight of it."""

    def leave(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slurm_jobs.run_tasks([task(line)], executor, folder, leave)


def test_job_without_a_number_is_found_by_its_name(tmp_path, slurm, executor):
    """As after a kill between the submission and its note."""
    (slurm / "hold").touch()
    unseen(executor, tmp_path / "runs", "true")
    record = tmp_path / "runs/train-1.job.json"
    record.write_text(record.read_text().replace('"101"', '""'))
    (slurm / "hold").unlink()
    assert run("true", executor, tmp_path / "runs").state == "COMPLETED"
    assert len(fake_slurm.jobs(slurm)) == 1


def test_end_that_nobody_saw(tmp_path, slurm, executor):
    unseen(executor, tmp_path / "runs", "exit 4")
    wait_for("FAILED", slurm)
    assert run("true", executor, tmp_path / "runs").state == "FAILED"
    assert run("true", executor, tmp_path / "runs").state == "COMPLETED"
    assert len(fake_slurm.jobs(slurm)) == 2


def test_cancelled_job(tmp_path, slurm, executor):
    unseen(executor, tmp_path / "runs")
    wait_for("RUNNING", slurm)
    subprocess.run(["scancel", "101"], check=True)
    assert run("true", executor, tmp_path / "runs").state == "CANCELLED"


@pytest.mark.parametrize("noted", [True, False])
def test_outputs_of_a_job_at_work_are_not_removed(tmp_path, slurm, executor, noted):
    (slurm / "hold").touch()
    unseen(executor, tmp_path / "runs", "true")
    record = tmp_path / "runs/train-1.job.json"
    record.write_text(record.read_text() if noted else record.read_text().replace('"101"', '""'))
    with pytest.raises(InputError, match=r"Slurm job 101, longpo.train-1-\w+, is pending and writes what would be rem"):
        slurm_jobs.forget_ended(tmp_path / "runs", [executor])
    (slurm / "hold").unlink()
    wait_for("COMPLETED", slurm)
    slurm_jobs.forget_ended(tmp_path / "runs", [executor])
    assert not [*(tmp_path / "runs").glob("*.json")]


def test_silence_of_slurm_is_no_end(tmp_path, slurm, executor, monkeypatch):
    monkeypatch.setattr(slurm_jobs, "_SILENCE", 0.3)
    (slurm / "forget").touch()
    with pytest.raises(
        InputError, match="squeue and sacct have known nothing of job 101 for 0 seconds; see whether it"
    ):
        run("true", executor, tmp_path / "runs")
    (slurm / "forget").unlink()
    assert run("true", executor, tmp_path / "runs").state == "COMPLETED"
    assert len(fake_slurm.jobs(slurm)) == 1
