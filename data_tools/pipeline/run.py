"""The stages of a file as steps: start what is missing, watch it, start again what was lost."""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from nemo_longpo.errors import InputError, error_sentence
from nemo_longpo.steps import Step, run_steps
from nemo_longpo.terminal import note, printable_lines

from ..runner.progress import TenthsBar, shares_of_parts
from ..runner.rows import read_stage_settings
from ..stages.table import STAGES, Report
from .config import Pipeline, StageProcesses
from .launch import command_lines, make_executor, run_processes

_LOG_TAIL = 2000  # bytes of a process's log to read and show
_LOG_DELAY = 5  # seconds that a log may arrive behind the end of its process, over a network


def pipeline_steps(pipeline: Pipeline) -> list[Step]:
    """Return a step for each stage of a file. Its stage says whether it is done, and what changed.

    What a step raises in the end: InputError with what a process said, or if parts are missing after all restarts.
    """
    return [
        Step(
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
    """Run every stage whose parts are not all there; returns the report of each stage by its name.

    Everything that can be checked is checked before the first process starts: the executors, and the settings of all
    stages up to the first unfinished one (those behind it have no output yet). Raises InputError as `run_steps` does.
    """
    for name, text in pipeline.executors.items():
        make_executor(text, f"executors.{name}")
    records = run_steps(pipeline_steps(pipeline), pipeline.output, redo=redo)
    return {name: record.report for name, record in records.items()}


def _launch(pipeline: Pipeline, stage: StageProcesses) -> Report:
    """Start the processes of a stage, and again while parts are missing."""
    if report := _check(stage):
        return report
    name = stage.launch.executor
    executor = make_executor(pipeline.executors[name], f"executors.{name}")
    for attempt in range(stage.launch.restarts + 1):
        if attempt:
            note(f"{stage.call.stage}: processes were lost; starting again what is missing")
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
    print(printable_lines(said[0]), file=sys.stderr)
    raise InputError(
        f"stage {stage.call.stage!r} lacks parts after {stage.launch.restarts + 1} starts; finished parts are kept, "
        f"run the same command to continue; the lines above are the last ones of {logs[0]}"
    )


def _check(stage: StageProcesses) -> Report:
    """The report of a finished stage, {} if something is missing. Raises InputError for settings that changed."""
    return replace(stage.call, values={**stage.call.values, "dry_run": True})()


class _PartsBar:
    """A bar over the parts of a stage, whoever makes them, with the shares that are done of unfinished ones."""

    def __init__(self, stage: StageProcesses):
        self._output = stage.call.output
        self._bar = TenthsBar(desc=stage.call.stage, unit="part", miniters=0)

    def __enter__(self) -> "_PartsBar":
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self._bar.close()

    def __str__(self) -> str:
        """The bar as it stands there."""
        return str(self._bar)

    def finished(self) -> int:
        return len(list(self._output.glob("part-*.jsonl")))

    def refresh(self) -> None:
        settings = read_stage_settings(self._output)
        shares, parts = shares_of_parts(self._output)
        self._bar.total = parts if settings is None else settings["parts"]
        if self._bar.total is not None:
            self._bar.update(min(self.finished() + shares, self._bar.total) - self._bar.n)
        if sys.stderr.isatty():
            self._bar.refresh()  # the seconds go on between two parts


def _tail(folder: Path) -> str:
    """The end of the log that a process left in its folder; its executor decides what the file is called."""
    deadline = time.monotonic() + _LOG_DELAY
    while not (logs := [path for path in folder.rglob("*") if path.suffix in (".log", ".out")]):
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.2)
    with max(logs, key=lambda path: path.stat().st_size).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _LOG_TAIL))
        return file.read().decode("utf-8", "replace")
