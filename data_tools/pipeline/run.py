"""Run the stages of a file as steps: start what is missing, watch it, restart lost processes."""

import shlex
import sys
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from nemo_longpo import steps, terminal
from nemo_longpo.errors import InputError, error_sentence
from nemo_longpo.launching import executors, slurm_jobs
from nemo_longpo.status_bar import StatusBar

from ..runner import progress, read_stage_settings
from ..stages.registry import STAGES, Report
from .config import Pipeline, StageProcesses


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


def run_pipeline(pipeline: Pipeline, redo: Collection[str] = ()) -> dict[str, Report]:
    """Run every stage with missing parts; return the report of each stage by its name.

    Everything that can be checked is checked before the first process starts: the executors, and the settings of all
    stages up to the first unfinished one (later ones have no output yet). Raises InputError if `run_steps` does.
    """
    made = [executors.make_executor(text, f"executors.{name}") for name, text in pipeline.executors.items()]
    if redo:
        slurm_jobs.forget_ended(pipeline.output / "runs", [own for own in made if slurm_jobs.is_slurm(own)])
    records = steps.run_steps(pipeline_steps(pipeline), pipeline.output, redo=redo)
    return {name: record.report for name, record in records.items()}


def _launch(pipeline: Pipeline, stage: StageProcesses) -> Report:
    """Start the processes of a stage, and restart them while parts are missing."""
    if report := _check(stage):
        return report
    name = stage.launch.executor
    executor = executors.make_executor(pipeline.executors[name], f"executors.{name}")
    for attempt in range(stage.launch.restarts + 1):
        if attempt:
            terminal.note(f"{stage.call.stage}: processes were lost; starting again what is missing")
        with _PartsBar(stage) as bar:
            try:
                ended = slurm_jobs.run_tasks(_tasks(stage), executor, pipeline.output / "runs", bar.refresh)
            except (KeyboardInterrupt, SystemExit):
                tqdm.write(f"{stage.call.stage}: stopped; {bar.finished()} finished parts are kept", file=sys.stderr)
                raise
        for process in ended:
            if (error := error_sentence(process.said)) is not None:
                raise InputError(f"stage {stage.call.stage!r}: {error}")
        if report := _check(stage):
            return report
    print(terminal.printable_lines(ended[0].said), file=sys.stderr)
    raise InputError(
        f"stage {stage.call.stage!r} lacks parts after {stage.launch.restarts + 1} starts; finished parts are kept, "
        f"run the same command to continue; the lines above are the last ones of {ended[0].log}"
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

    def refresh(self, jobs: str = "") -> None:
        """Show what has been done, and `jobs`, a line about the processes."""
        if jobs:
            self._bar.set_postfix_str(jobs, refresh=False)
        settings = read_stage_settings(self._output)
        shares, parts = progress.shares_of_parts(self._output)
        self._bar.total = parts if settings is None else settings["parts"]
        if self._bar.total is not None:
            self._bar.update(min(self.finished() + shares, self._bar.total) - self._bar.n)
        if sys.stderr.isatty():
            self._bar.refresh()  # the seconds continue between two parts


def command_lines(stage: StageProcesses) -> list[str]:
    """Return the command of each process of a stage: the words of the stage's call, its rank and the world size."""
    count = stage.launch.processes
    shares = [["--rank", str(rank), "--world-size", str(count)] for rank in range(count)] if count > 1 else [[]]
    return [f"{stage.launch.command} {shlex.join([*stage.call.words(), *share])}" for share in shares]


def _tasks(stage: StageProcesses) -> list[executors.Task]:
    return [
        executors.Task(
            name=f"{stage.call.stage}-{rank}",
            line=line,
            env={name: value.format(rank=rank) for name, value in stage.env.items()},
        )
        for rank, line in enumerate(command_lines(stage))
    ]
