"""Where the command of a step runs: on this machine, or as a Slurm job on an executor that the file names."""

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo import errors, live_status, steps, terminal
from nemo_longpo.launching import executors, slurm_jobs
from nemo_longpo.steps import process

from .evolution_settings import Environments, Evolution, Training

HERE = "local"
_NOTE_SECONDS = 20  # between lines about a job where standard error is not a terminal


def check_executor(name: str, described: Mapping[str, Mapping[str, Any]], paths: Sequence[Path], where: str) -> None:
    """Raises InputError if training or evaluation cannot run on an executor, or its container hides a path."""
    if name == HERE:
        return
    if name not in described:
        raise errors.InputError(f"{where}: executor {name!r} is not among {', '.join([HERE, *described])}")
    own, place = described[name], f"{where}: executor {name!r}"
    if own["type"] != executors.SLURM:
        raise errors.InputError(f"{place} is a {own['type']}; give {HERE!r}, this machine, or a {executors.SLURM}")
    if own.get("launcher") not in (None, "torchrun"):
        raise errors.InputError(f"{place} has launcher {own['launcher']!r}; give torchrun, or none for one task a GPU")
    if own.get("tunnel", {"type": "LocalTunnel"})["type"] != "LocalTunnel":
        raise errors.InputError(
            f"{place} has a tunnel; run `longpo evolve` where jobs are submitted, because it reads what they write"
        )
    mounts = [Path(parts[0]) for parts in map(_mount, own.get("container_mounts", [])) if parts == [parts[0]] * 2]
    for path in paths if own.get("container_image") else []:
        if not any(path == mount or mount in path.parents for mount in mounts):
            raise errors.InputError(
                f"{place}: its container does not show {path} under the same path; add {path}:{path}, or a folder "
                "above it, to container_mounts"
            )
    for path in paths:
        if shlex.quote(str(path)) != str(path):
            raise errors.InputError(f"{place}: {path} cannot stand in a batch script; give a path without spaces")
    executors.make_executor(own, f"executors.{name}")


def _mount(text: str) -> list[str]:
    """Return the path outside and the path inside of a mount."""
    return text.split(":")[:2]


def placement(training: Training, described: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, int]:
    """Return the settings of training that an executor decides: its nodes, and the processes on each.

    Raises InputError if the file gives others, or if nothing would start the processes.
    """
    name, settings = training.executor, training.settings
    module = training.command.module
    if training.processes > 1 and (module is None or name != HERE or training.launcher):
        raise errors.InputError(
            f"{where}: processes are those that torchrun starts on this machine for trainer bridge; remove it, and "
            f"{'set trainer.devices' if module is None else 'say it in the executor or the launcher'}"
        )
    if name == HERE:
        return {}
    own = described[name]
    if module is not None and own.get("launcher") != "torchrun":
        raise errors.InputError(
            f"{where}: executor {name!r} starts no ranks for trainer bridge; give it launcher: torchrun"
        )
    values = own.get("nodes", 1), own.get("torchrun_nproc_per_node") or own.get("ntasks_per_node", 1)
    found = dict(zip(training.command.sizes, values, strict=False))
    for setting, value in found.items():
        if settings.get(setting, value) != value:
            raise errors.InputError(
                f"{where}: {setting} is {settings[setting]}, and executor {name!r} starts {value}; leave the setting "
                "out, or change nodes or ntasks_per_node of the executor"
            )
    return found


def in_container(name: str, described: Mapping[str, Mapping[str, Any]]) -> bool:
    return name != HERE and bool(described[name].get("container_image"))


def program(evolution: Evolution, executor: str, environment: str, name: str) -> str:
    """Return a program of an environment; in a container that of the image, or the path that the file gives."""
    if in_container(executor, evolution.executors) and getattr(evolution.environments, environment) is None:
        return name
    return evolution.environments.program(environment, name)


def starting(evolution: Evolution, training: Training) -> list[str]:
    """Return the words that start training's program, up to its arguments.

    A module is started by Python where an executor's torchrun does the rest, else by torchrun, or by what stands behind
    the words of a launcher.
    """
    module = training.command.module
    if module is None:
        return [*training.launcher, program(evolution, training.executor, "train", "nemo")]
    if training.launcher:
        return [*training.launcher, "-m", module]
    if training.executor != HERE or training.processes == 1:
        return [program(evolution, training.executor, "train", "python"), "-m", module]
    torchrun = program(evolution, training.executor, "train", "torchrun")
    return [torchrun, "--nproc-per-node", str(training.processes), "-m", module]


def program_here(evolution: Evolution, training: Training, name: str) -> str:
    """Return a program for a command that runs on this machine in any case and starts others through NeMo-Run: of the
    training environment if NeMo is in it, else of the one that runs this."""
    elsewhere = training.command.module is not None or in_container(training.executor, evolution.executors)
    return (Environments() if elsewhere else evolution.environments).program("train", name)


@dataclass(frozen=True, kw_only=True)
class SlurmStep:
    """A step's command as a Slurm job, submitted again up to `restarts` times if it runs out of time or loses nodes."""

    task: executors.Task
    executor: Mapping[str, Any]
    where: str
    folder: Path
    restarts: int = 0
    progress: Callable[[float], str]

    def __call__(self) -> None:
        """Submit the job, or find the one that was submitted before, and watch it. Raises InputError if it fails."""
        executor = executors.make_executor(self.executor, self.where)
        for attempt in range(self.restarts + 1):
            (ended,) = slurm_jobs.run_tasks([self.task], executor, self.folder, _Watch(self.task.name, self.progress))
            if ended.state == slurm_jobs.COMPLETED:
                return
            if ended.state not in slurm_jobs.LOST:
                break
            if attempt < self.restarts:
                terminal.note(f"{self.task.name}: its job ended with {ended.state}; it is submitted again")
        if (sentence := errors.error_sentence(ended.said)) is not None:
            raise errors.InputError(f"step {self.task.name!r}: {sentence} (its log: {ended.log})")
        print(terminal.printable_lines(ended.said), file=sys.stderr)
        raise errors.InputError(
            f"step {self.task.name!r}: its Slurm job ended with {ended.state}; the lines above are the last ones of "
            f"{ended.log}, and the same command submits it again"
        )

    def script(self) -> str:
        """Return the batch script, without submitting it."""
        return slurm_jobs.batch_script(self.task, executors.make_executor(self.executor, self.where), self.folder)


def placed(
    evolution: Evolution, executor: str, step: steps.Step, *, parallel: bool = False, restarts: int = 0
) -> steps.Step:
    """Return a step of a command as it runs on an executor; only if `parallel`, on all of its nodes and processes."""
    if executor == HERE:
        return step
    own = dict(evolution.executors[executor])
    if not parallel:
        own |= {"nodes": 1, "ntasks_per_node": 1, "launcher": None}
    elif own.get("launcher") and not own.get("container_image"):  # torchrun lies beside the program
        own["setup_lines"] = "\n".join(
            [f'export PATH={shlex.quote(str(Path(step.command[0]).parent))}:"$PATH"', own.get("setup_lines") or ""]
        ).strip()
    job = SlurmStep(
        task=executors.Task(step.name, shlex.join(step.command), step.env),
        executor=own,
        where=f"executors.{executor}",
        folder=evolution.output / "runs",
        restarts=restarts,
        progress=partial(_newest, evolution.output, step.statuses(evolution.output)),
    )
    lines = tuple(f"on {executor}: {line}" for line in step.command_lines())
    return replace(step, command=(), env={}, function=job, lines=lines)


def check_redo(evolution: Evolution) -> None:
    """Raises InputError if a job is at work, whose outputs --redo would remove; ended ones are forgotten."""
    found = [
        executors.make_executor(own, f"executors.{name}")
        for name, own in evolution.executors.items()
        if own["type"] == executors.SLURM
    ]
    for folder in (evolution.output, *(own.folder / "data" for own in evolution.rounds)):
        slurm_jobs.forget_ended(folder / "runs", found)


def _newest(output: Path, names: Sequence[str], since: float) -> str:
    """Return what the work on one of these directories has said of itself."""
    return next((found.line() for _, found in live_status.read_inside(output, names, since)), "")


class _Watch:
    """Shows a line about a job when its state changes, and now and then."""

    def __init__(self, name: str, progress: Callable[[float], str]):
        self._name, self._progress, self._started = name, progress, time.time()
        self._shown, self._when = "", 0.0

    def __call__(self, state: str) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() or state != self._shown or now - self._when > _NOTE_SECONDS:
            self._shown, self._when = state, now
            process.show_progress(f"{self._name}: {state} {self._progress(self._started)}".rstrip(), last=False)
