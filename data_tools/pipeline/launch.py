"""The processes of one stage as tasks of a NeMo-Run experiment. The only file of the data tools that knows NeMo-Run."""

import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from .config import StageProcesses

_POLL_SECONDS = 1.0


def import_nemo_run() -> Any:
    """The nemo_run package. Raises InputError if it is not installed."""
    try:
        import nemo_run
    except ImportError as error:
        raise InputError(
            f"`longpo data run` starts processes through NeMo-Run, which cannot be imported here ({error}); "
            "pip install nemo_run, or start the stages yourself with --rank and --world-size"
        ) from error
    return nemo_run


def make_executor(description: Mapping[str, Any], where: str) -> Any:
    """An executor from its class name in nemo_run ("type") and its arguments; nested ones, such as tunnels, likewise.

    Unless it says otherwise, it packs up no source code: the tasks run installed commands. Raises InputError for an
    unknown class or arguments that it refuses.
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


def command_lines(stage: StageProcesses) -> list[str]:
    """Return what each process of a stage runs: the words of the stage's call, and its rank and the world size."""
    count = stage.launch.processes
    shares = [["--rank", str(rank), "--world-size", str(count)] for rank in range(count)] if count > 1 else [[]]
    return [f"{stage.launch.command} {shlex.join([*stage.call.words(), *share])}" for share in shares]


def run_processes(stage: StageProcesses, executor: Any, log_dir: Path, watch: Callable[[], None]) -> list[Path]:
    """Start all processes of a stage, call `watch` until they have ended, and return the folders of their logs.

    How the processes ended is not returned: what counts is which parts are there.
    """
    nemo_run = import_nemo_run()
    quiet = {"clean_mode": True, "enable_goodbye_message": False, "skip_status_at_exit": True, "log_level": "WARN"}
    with nemo_run.Experiment(f"longpo-{stage.call.stage}", base_dir=str(log_dir), **quiet) as experiment:
        for rank, line in enumerate(command_lines(stage)):
            script = nemo_run.Script(
                inline=line,
                env={name: value.format(rank=rank) for name, value in stage.env.items()},
            )
            experiment.add(script, executor=executor, name=f"{stage.call.stage}-{rank}")
        experiment.run(detach=False)
        try:
            while any(not _has_ended(task) for task in experiment.status(return_dict=True).values()):
                watch()
                time.sleep(_POLL_SECONDS)
        except (KeyboardInterrupt, SystemExit):
            for task in experiment.status(return_dict=True):
                experiment.cancel(task)
            raise
        return [Path(task["local_dir"]) for task in experiment.status(return_dict=True).values()]


def _has_ended(task: Mapping[str, Any]) -> bool:
    from torchx.specs import is_terminal

    return is_terminal(task["status"])
