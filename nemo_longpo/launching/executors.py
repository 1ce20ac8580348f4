"""Executors of NeMo-Run from descriptions in files, and commands as tasks on them. No other file uses NeMo-Run."""

import io
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

SLURM = "SlurmExecutor"
JOB_PREFIX = "longpo."  # of the names of Slurm jobs
LOG_BYTES = 2000  # of a log's end, to read and show
_POLL_SECONDS = 1.0
_LOG_DELAY = 5  # seconds that a log may arrive after the end of its process, over a network
_QUIET = {"clean_mode": True, "enable_goodbye_message": False, "skip_status_at_exit": True, "log_level": "WARN"}


@dataclass(frozen=True)
class Task:
    """A command line for the shell, with its variables. Names are unique among the tasks of one folder."""

    name: str
    line: str
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A task that has ended: where its log is, and the last of what it has said. `state` is Slurm's, "" elsewhere."""

    name: str
    log: str
    said: str
    state: str = ""


def import_nemo_run() -> Any:
    """Return the nemo_run package. Raises InputError if it is not installed."""
    try:
        import nemo_run
    except ImportError as error:
        raise InputError(
            f"executors are those of NeMo-Run, which cannot be imported here ({error}); pip install nemo_run, or start "
            "the commands yourself (the stages of data with --rank and --world-size)"
        ) from error
    return nemo_run


def make_executor(description: Mapping[str, Any], where: str) -> Any:
    """Return an executor from its class name in nemo_run ("type") and its arguments; nested ones (tunnels) likewise.

    By default it packages no source code: the tasks run installed commands. Raises InputError if the class is unknown
    or refuses the arguments.
    """
    return _build({"packager": {"type": "Packager"}, **description}, where)


def _build(description: Mapping[str, Any], where: str) -> Any:
    nemo_run = import_nemo_run()
    arguments = {
        key: _build(value, f"{where}.{key}") if isinstance(value, dict) and "type" in value else value
        for key, value in description.items()
        if key != "type"
    }
    kind = vars(nemo_run).get(description["type"])
    if not isinstance(kind, type):
        raise InputError(f"{where}: nemo_run has no class {description['type']!r}; try LocalExecutor or SlurmExecutor")
    try:
        return kind(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{where}: {description['type']} refuses its arguments ({error})") from error


def bridge_training(recipe: str, overrides: Sequence[str] = (), log_dir: str | None = None) -> Any:
    """Return a task of NeMo-Run that trains a recipe of `nemo_longpo.bridge`, with overrides as on its command line.

    Its executor starts the ranks (`launcher="torchrun"`) and has Megatron-Bridge; here it need not be installed.
    """
    place = [] if log_dir is None else ["--log-dir", log_dir]
    words = ["--recipe", recipe, *place, *overrides]
    return import_nemo_run().Script(path="nemo_longpo.bridge.train", m=True, args=words, entrypoint="python")


def run_attached(tasks: Sequence[Task], executor: Any, folder: Path, watch: Callable[[str], None]) -> list[Ended]:
    """Run tasks that end with this process, and call `watch` until they have ended, whatever their exit status is."""
    nemo_run = import_nemo_run()
    with nemo_run.Experiment(f"longpo-{tasks[0].name}", base_dir=str(folder), **_QUIET) as experiment:
        for task in tasks:
            experiment.add(nemo_run.Script(inline=task.line, env=dict(task.env)), executor=executor, name=task.name)
        experiment.run(detach=False)
        try:
            while any(not _has_ended(own) for own in experiment.status(return_dict=True).values()):
                watch("")
                time.sleep(_POLL_SECONDS)
        except (KeyboardInterrupt, SystemExit):
            for name in experiment.status(return_dict=True):
                experiment.cancel(name)
            raise
        folders = [Path(own["local_dir"]) for own in experiment.status(return_dict=True).values()]
        return [Ended(task.name, str(own), _tail(own)) for task, own in zip(tasks, folders, strict=True)]


def _has_ended(task: Mapping[str, Any]) -> bool:
    from torchx.specs import is_terminal

    return bool(is_terminal(task["status"]))


def _tail(folder: Path) -> str:
    """Return the end of a process's log in its folder; the executor chooses the name of the file."""
    deadline = time.monotonic() + _LOG_DELAY
    while not (logs := [path for path in folder.rglob("*") if path.suffix in (".log", ".out")]):
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.2)
    with max(logs, key=lambda path: path.stat().st_size).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
        return file.read().decode("utf-8", "replace")


def submit(task: Task, executor: Any, folder: Path) -> str:
    """Submit a task as a Slurm job, and return its number.

    Raises InputError, with what Slurm says, if it refuses the job.
    """
    from invoke.exceptions import Failure

    with _experiment(task, executor, folder) as experiment:
        try:
            experiment.run(detach=True)
        except Failure as error:
            said = " ".join(error.result.stderr.split()) or f"exit status {error.result.exited}"
            raise InputError(f"Slurm does not take the job {task.name} ({said}); correct its executor") from error
        (job,) = experiment.jobs
        return str(job.handle.rpartition("/")[2])


def batch_script(task: Task, executor: Any, folder: Path) -> str:
    """Return the batch script, and what it starts, that `submit` would give to Slurm; nothing is left on the disk."""
    with tempfile.TemporaryDirectory() as scratch:
        with _experiment(task, executor, Path(scratch)) as experiment:
            experiment.dryrun(log=False, delete_exp_dir=False)
        texts = [path.read_text() for pattern in ("*_sbatch.sh", "*.sh") for path in Path(scratch).rglob(pattern)]
        return "\n".join(dict.fromkeys(texts)).replace(scratch, str(folder))


@contextmanager
def _experiment(task: Task, executor: Any, folder: Path) -> Iterator[Any]:
    """Yield an experiment of one Slurm job; its scripts and logs lie in `folder`, in which the job looks for them."""
    nemo_run = import_nemo_run()
    executor = executor.clone()
    executor.job_name_prefix = executor.job_name_prefix or JOB_PREFIX
    executor.poll_estimated_start_time = False
    if isinstance(executor.tunnel, nemo_run.LocalTunnel):
        executor.tunnel.job_dir = str(folder / "experiments")
    # NeMo-Run's own way writes names in capitals, and values without quotes.
    exports = [f"export {name}={shlex.quote(value)}" for name, value in task.env.items()]
    executor.setup_lines = "\n".join([*exports, *filter(None, [executor.setup_lines])])
    if executor.container_image and task.env:  # an image may have other values for them
        executor.container_env = [*(executor.container_env or []), *task.env]
    script = _script(nemo_run, shlex.split(task.line)) if executor.launcher else nemo_run.Script(inline=task.line)
    with open(os.devnull) as nothing, redirect_stdout(io.StringIO()):
        before, sys.stdin = sys.stdin, nothing  # its shell would take what people type
        try:
            with nemo_run.Experiment(f"longpo-{task.name}", base_dir=str(folder), **_QUIET) as experiment:
                experiment.add(script, executor=executor, name=task.name)
                yield experiment
        finally:
            sys.stdin = before


def _script(nemo_run: Any, words: list[str]) -> Any:
    """Return what a launcher runs on each rank: a module of Python (`python -m NAME …`), or a program."""
    if words[1:2] == ["-m"]:
        return nemo_run.Script(path=words[2], args=words[3:], entrypoint="python", m=True)
    return nemo_run.Script(path=words[0], args=words[1:], entrypoint=words[0])


def log_folders(name: str, executor: Any, folder: Path) -> str:
    """Return a shell pattern of the folders where Slurm jobs of a task write their logs."""
    remote = not isinstance(executor.tunnel, import_nemo_run().LocalTunnel)
    return f"{executor.tunnel.job_dir if remote else folder / 'experiments'}/longpo-{name}/*/{name}"


def ask(executor: Any, command: str) -> str:
    """Return what a command prints where jobs are submitted, "" if it fails."""
    executor.tunnel.connect()
    result = executor.tunnel.run(command, hide=True, warn=True, in_stream=False)
    return str(result.stdout) if result.ok else ""
