"""Run the stages of a file as steps: start what is missing, watch it, restart lost processes.

The processes of a stage are the tasks of a NeMo-Run experiment. No other file of the data tools uses NeMo-Run.
"""

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_longpo import steps, terminal
from nemo_longpo.errors import InputError, error_sentence
from nemo_longpo.status_bar import StatusBar

from ..runner import progress, read_stage_settings
from ..stages.registry import STAGES, Report
from .config import Pipeline, StageProcesses

_POLL_SECONDS = 1.0
_LOG_TAIL = 2000  # bytes of a process's log to read and show
_LOG_DELAY = 5  # seconds that a log may arrive after the end of its process, over a network


def pipeline_steps(pipeline: Pipeline) -> list[steps.Step]:
    """Return a step for each stage of a file. The stage tells whether it is done, and what changed.

    A step raises InputError if a process reports an error, or if parts are missing after all restarts.
    """
    return [
        steps.Step(
            name=stage.call.stage,
            title=STAGES[stage.call.stage].summary,
            function=partial(_launch, pipeline, stage),
            lines=tuple(command_lines(stage)),
            inputs=tuple(map(Path, stage.call.inputs)),
            outputs=(stage.call.output,),
            settings=stage.call.settings(STAGES[stage.call.stage].settings[0]).recorded(),
            check=partial(_check, stage),
        )
        for stage in pipeline.stages
    ]


def run_pipeline(pipeline: Pipeline, redo: str | None = None) -> dict[str, Report]:
    """Run every stage with missing parts; return the report of each stage by its name.

    Everything that can be checked is checked before the first process starts: the executors, and the settings of all
    stages up to the first unfinished one (later ones have no output yet). Raises InputError if `run_steps` does.
    """
    for name, text in pipeline.executors.items():
        make_executor(text, f"executors.{name}")
    records = steps.run_steps(pipeline_steps(pipeline), pipeline.output, redo=redo)
    return {name: record.report for name, record in records.items()}


def _launch(pipeline: Pipeline, stage: StageProcesses) -> Report:
    """Start the processes of a stage, and restart them while parts are missing."""
    if report := _check(stage):
        return report
    name = stage.launch.executor
    executor = make_executor(pipeline.executors[name], f"executors.{name}")
    for attempt in range(stage.launch.restarts + 1):
        if attempt:
            terminal.note(f"{stage.call.stage}: processes were lost; starting again what is missing")
        with _PartsBar(stage) as bar:
            try:
                logs = run_processes(stage, executor, pipeline.output / "runs", bar.refresh)
            except (KeyboardInterrupt, SystemExit):
                tqdm.write(f"{stage.call.stage}: stopped; {bar.finished()} finished parts are kept", file=sys.stderr)
                raise
        said = [_tail(folder) for folder in logs]
        for text in said:
            if (error := error_sentence(text)) is not None:
                raise InputError(f"stage {stage.call.stage!r}: {error}")
        if report := _check(stage):
            return report
    print(terminal.printable_lines(said[0]), file=sys.stderr)
    raise InputError(
        f"stage {stage.call.stage!r} lacks parts after {stage.launch.restarts + 1} starts; finished parts are kept, "
        f"run the same command to continue; the lines above are the last ones of {logs[0]}"
    )


def _check(stage: StageProcesses) -> Report:
    """Return the report of a finished stage, {} if something is missing. Raises InputError if settings changed."""
    return replace(stage.call, values={**stage.call.values, "dry_run": True})()


class _PartsBar:
    """A bar over the parts of a stage in all processes, with the finished shares of unfinished parts."""

    def __init__(self, stage: StageProcesses):
        self._output = stage.call.output
        self._bar = StatusBar(None, desc=stage.call.stage, unit="part")

    def __enter__(self) -> "_PartsBar":
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self._bar.close()

    def __str__(self) -> str:
        """Return the bar as it is displayed."""
        return str(self._bar)

    def finished(self) -> int:
        return len(list(self._output.glob("part-*.jsonl")))

    def refresh(self) -> None:
        settings = read_stage_settings(self._output)
        shares, parts = progress.shares_of_parts(self._output)
        self._bar.total = parts if settings is None else settings["parts"]
        if self._bar.total is not None:
            self._bar.update(min(self.finished() + shares, self._bar.total) - self._bar.n)
        if sys.stderr.isatty():
            self._bar.refresh()  # the seconds continue between two parts


def _tail(folder: Path) -> str:
    """Return the end of a process's log in its folder; the executor chooses the name of the file."""
    deadline = time.monotonic() + _LOG_DELAY
    while not (logs := [path for path in folder.rglob("*") if path.suffix in (".log", ".out")]):
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.2)
    with max(logs, key=lambda path: path.stat().st_size).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _LOG_TAIL))
        return file.read().decode("utf-8", "replace")


def import_nemo_run() -> Any:
    """Return the nemo_run package. Raises InputError if it is not installed."""
    try:
        import nemo_run
    except ImportError as error:
        raise InputError(
            f"`longpo data run` starts processes through NeMo-Run, which cannot be imported here ({error}); "
            "pip install nemo_run, or start the stages yourself with --rank and --world-size"
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


def command_lines(stage: StageProcesses) -> list[str]:
    """Return the command of each process of a stage: the words of the stage's call, its rank and the world size."""
    count = stage.launch.processes
    shares = [["--rank", str(rank), "--world-size", str(count)] for rank in range(count)] if count > 1 else [[]]
    return [f"{stage.launch.command} {shlex.join([*stage.call.words(), *share])}" for share in shares]


def run_processes(stage: StageProcesses, executor: Any, log_dir: Path, watch: Callable[[], None]) -> list[Path]:
    """Start all processes of a stage, call `watch` until they have ended, and return the folders of their logs.

    The processes' exit status is not returned: only the finished parts count.
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
