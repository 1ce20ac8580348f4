"""The files of a run: where they lie, its newest complete checkpoint, what it may begin beside, the lines of metrics.

    LOG_DIR/NAME/checkpoints/global_step=8/   checkpoints, here of NeMo, see nemo_longpo.checkpoints.forms
    LOG_DIR/NAME/inputs/                      what the run was given
    LOG_DIR/tb_logs/NAME/metrics.jsonl        a line per optimizer step, beside TensorBoard's files
    LOG_DIR/status.json                       how far it has come, see nemo_longpo.live_status

LOG_DIR is `log.log_dir` and NAME `log.name`. Links beside the checkpoints (`…-last`) are never followed to find one:
they are wrong after a run is killed, copied or moved.

NeMo puts a file `STEP-unfinished` beside a checkpoint before it writes or removes it, and removes the file when all
ranks are done. Megatron writes `common.pt` of a checkpoint first. Its `metadata.json` comes last or, when it is not
written in the background, NeMo's context. Megatron-Bridge leaves no such mark, but our runs through it do; its
`run_config.yaml` comes last.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_longpo import atomic, json_input
from nemo_longpo.errors import InputError

from .completeness import missing_part
from .forms import NEMO, form_of

RUN_NAME = "longpo"
CHECKPOINTS = "checkpoints"
INPUTS = "inputs"
COMMAND = "cmd-args.log"
"""Beside the checkpoints: the command that the run was last started with."""
TENSORBOARD = "tb_logs"
METRICS = "metrics.jsonl"
LAST = "-last"
UNFINISHED = "-unfinished"
GOES_ON = "and it continues from the newest complete checkpoint"
"""What a run does that is started again; the end of its error sentences."""

_STEP = re.compile(r"(?:step=|consumed_samples=|^iter_)(\d+)")


def metrics_file(log_dir: Path, name: str = RUN_NAME) -> Path:
    return log_dir / TENSORBOARD / name / METRICS


def log_dir_of(metrics: Path) -> Path:
    """Return LOG_DIR, given the file of metrics; what that lies in, if it was moved elsewhere."""
    return metrics.parents[2] if metrics.parent.parent.name == TENSORBOARD else metrics.parent


@dataclass(frozen=True)
class Beside:
    """What a run keeps beside its folder of checkpoints."""

    inputs: Path
    metrics: Path

    @property
    def command(self) -> Path:
        return self.inputs.with_name(COMMAND)


def beside_checkpoints(folder: Path) -> Beside:
    """Say where the other files of a run lie, given LOG_DIR/NAME/checkpoints; within a folder of another name."""
    if folder.name == CHECKPOINTS:
        return Beside(folder.parent / INPUTS, metrics_file(folder.parent.parent, folder.parent.name))
    return Beside(folder / INPUTS, metrics_file(folder))


def checkpoint_of(path: str | Path) -> Path:
    """Return the directory of a checkpoint, given itself or the `weights` in it, as NeMo passes them."""
    return Path(path).parent if Path(path).name == "weights" else Path(path)


def mark(checkpoint: Path) -> Path:
    """The file that stands beside a checkpoint while it is not whole."""
    return checkpoint.with_name(checkpoint.name + UNFINISHED)


@dataclass(frozen=True)
class Checkpoints:
    """The content of a `checkpoints` folder, each list from the oldest to the newest.

    `damaged` ones lack something, without a mark that NeMo was busy with them.
    """

    folder: Path
    complete: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)

    @property
    def newest(self) -> Path | None:
        """The newest complete one."""
        return self.complete[-1] if self.complete else None

    def describe_left_out(self) -> list[str]:
        """Return a line for every checkpoint that would be the newest if it were complete."""
        later = [path for path in self.damaged if self.newest is None or _age(path) > _age(self.newest)]
        lines = [f"{path} is left out: {_describe_damage(path)}" for path in later]
        if self.newest is None:
            lines += [f"{path} is left out: the run was killed while it was written" for path in self.unfinished]
        return lines


def list_checkpoints(folder: Path) -> Checkpoints:
    """Sort the checkpoints of one folder; none if it does not exist.

    The result is the same on every rank of a run that shares the file system.
    """
    found = Checkpoints(folder)
    paths = folder.iterdir() if folder.is_dir() else ()
    for path in sorted((path for path in paths if not path.is_symlink() and path.is_dir()), key=_age):
        if _unfinished_sign(path):
            found.unfinished.append(path)
        elif missing_part(path) is None:
            found.complete.append(path)
        elif _is_checkpoint(path) or _STEP.search(path.name):
            found.damaged.append(path)
    return found


def find_checkpoint(path: Path) -> Path:
    """Return the newest complete checkpoint of a run directory; any other path as it is.

    A run directory is what was given as `log.log_dir`, the folder of the run's name in it, or its `checkpoints`.

    Raises:
        InputError: a run has no complete checkpoint; there are several runs; the path is a checkpoint that is not
            finished, or a link to nothing.
    """
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"{path} is a link to {os.readlink(path)}, which is not there; give the run's directory instead"
        )
    if _is_checkpoint(path) or (path / "config.json").is_file():
        real = path.resolve()
        if sign := _unfinished_sign(real):
            raise InputError(
                f"{real} is not finished: a run writes or removes it, or was killed while it did "
                f"({sign}); give the run's directory instead"
            )
        return path
    folders = _find_folders(path)
    return _complete_in(folders, path)[-1] if folders else path


def find_checkpoints(path: Path) -> list[Path]:
    """Return all complete checkpoints of a run directory, the oldest first.

    Raises InputError if it is none, holds several runs, or no complete checkpoint.
    """
    if not (folders := _find_folders(path)):
        raise InputError(f"{path} is not the directory of a run, and has no checkpoints; give its log.log_dir")
    return _complete_in(folders, path)


def newest_step(path: Path) -> int | None:
    """Return the optimizer step in the name of a run directory's newest complete checkpoint; None if there is none."""
    complete = [checkpoint for folder in _find_folders(path) for checkpoint in list_checkpoints(folder).complete]
    step = max((_age(checkpoint)[0] for checkpoint in complete), default=-1)
    return None if step < 0 else step


def _complete_in(folders: list[Path], path: Path) -> list[Path]:
    """Return the complete checkpoints of the one folder that `path` holds. Raises InputError if that cannot be."""
    if len(folders) > 1:
        names = ", ".join(str(folder.parent.relative_to(path)) for folder in folders)
        raise InputError(f"{path} holds the checkpoints of several runs ({names}); give one of them")
    found = list_checkpoints(folders[0])
    if found.complete:
        return found.complete
    reason = ""
    if found.damaged:
        reason = f": {_describe_damage(found.damaged[-1])}"
    elif found.unfinished:
        reason = f": {found.unfinished[-1].name} was not finished"
    raise InputError(f"{folders[0]} holds no complete checkpoint{reason}")


def find_resume_point(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run's folder; None if nothing was ever saved there.

    Raises InputError if there are checkpoints and none is complete.
    """
    found = list_checkpoints(folder)
    if found.newest is None and found.damaged:
        damaged = found.damaged[-1]
        raise InputError(
            f"{_describe_damage(damaged)}, and {folder} holds no complete checkpoint to continue from; copy that one "
            f"again, or remove {damaged} to start the run over."
        )
    return found.newest


def refuse_to_start_beside(folder: Path, start: Path | None) -> None:
    """Refuse a run that would save into `folder` unless it holds that run's own checkpoints and `start` is the newest.

    `start` is the checkpoint that training resumes from (or its `weights`); None if it begins with step 1.
    Raises InputError if the folder holds something else, which the next resume would take for this run.
    """
    found = list_checkpoints(folder)
    latest = found.newest or (found.damaged[-1] if found.damaged else None)
    if latest is None:
        return
    directory = None if start is None else checkpoint_of(start.resolve())
    if directory == latest.resolve():
        return
    past = [*found.complete, *found.damaged]
    if directory is not None and directory in [path.resolve() for path in past]:
        raise InputError(
            f"The run would go back to {directory} although {latest} is newer; remove what is newer, or copy the "
            "older one elsewhere and give another log.log_dir."
        )
    raise InputError(
        f"{folder} holds checkpoints already ({latest.name}), and this run would start over beside them; to continue "
        "with them set resume.resume_if_exists=True and leave resume.resume_from_path unset, to start over remove them "
        "or give another log.log_dir."
    )


def point_last_link(checkpoint: Path) -> None:
    """Leave one `…-last` link beside a checkpoint. It leads to it, relative so that it may be copied and moved."""
    name = checkpoint.name.removesuffix(LAST) + LAST
    for path in checkpoint.parent.glob(f"*{LAST}"):
        if path.is_symlink() and path.name != name:
            path.unlink(missing_ok=True)
    link = checkpoint.with_name(name)
    if link == checkpoint or (link.is_dir() and not link.is_symlink()):
        return
    partial = checkpoint.with_name(f".{name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(checkpoint.name)
    partial.replace(link)


def read_metrics(log_dir: Path, name: str = RUN_NAME) -> list[dict[str, Any]]:
    """Return the metrics of each optimizer step of a run so far; what is no whole line of metrics is left out."""
    path = metrics_file(log_dir, name)
    return read_metrics_file(path)[0] if path.exists() else []


def read_metrics_file(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the metrics of each line of a file, and the number of lines that are no whole line of metrics.

    Raises InputError if the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give another run, or its owner's rights") from error
    found = [metrics for line in lines if (metrics := _parse_metrics(line)) is not None]
    return found, len(lines) - len(found)


def keep_steps(path: Path, last: int) -> int:
    """Drop the lines of steps after `last`, which will be trained again, and what is no line of metrics.

    A full disk or a loss of power leaves a torn last line, or zeros in its place. It must not stop the run, whose
    weights are in its checkpoints. Returns how many lines could not be read. Raises InputError if the disk is full.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    lines = [(line, _parse_metrics(line)) for line in content.splitlines(keepends=True)]
    kept = b"".join(line for line, metrics in lines if metrics is not None and metrics["step"] <= last)
    if kept != content:
        atomic.write_file(path, kept, kept="nothing is lost")
    return sum(metrics is None for _, metrics in lines)


def _unfinished_sign(checkpoint: Path) -> str | None:
    """Return how it shows that a trainer is writing or removing it, or was when the run was killed."""
    if mark(checkpoint).exists():
        return f"{mark(checkpoint).name} is beside it"
    form = form_of(checkpoint)
    if form and form.last and not (checkpoint / form.last).exists():
        return f"{form.last}, which is written last, is not in it"
    return None


def _is_checkpoint(path: Path) -> bool:
    return form_of(path) is not None


def _age(checkpoint: Path) -> tuple[int, float]:
    """Order by the step in the name, which copying does not change; names without one come first, by time."""
    step = _STEP.search(checkpoint.name)
    written = checkpoint / (form_of(checkpoint) or NEMO).weights / "metadata.json"
    return int(step[1]) if step else -1, written.stat().st_mtime if written.exists() else 0.0


def _find_folders(path: Path) -> list[Path]:
    """Return the folder of checkpoints that `path` is, that of its run, or those of all runs in it."""
    holds_steps = path.is_dir() and any(_STEP.search(each.name) and _is_checkpoint(each) for each in path.iterdir())
    if path.name == CHECKPOINTS or holds_steps:
        return [path]
    for pattern in (CHECKPOINTS, f"*/{CHECKPOINTS}", f"*/*/{CHECKPOINTS}"):
        if found := sorted(folder for folder in path.glob(pattern) if folder.is_dir()):
            return found
    return []


def _describe_damage(checkpoint: Path) -> str:
    return f"{checkpoint / str(missing_part(checkpoint))} is missing or empty"


def _parse_metrics(line: bytes) -> dict[str, Any] | None:
    """Return None for what is not a whole line of metrics."""
    if not line.endswith(b"\n"):
        return None
    try:
        metrics = json_input.parse_json_object(line, "metrics", "drop it")
    except InputError:
        return None
    return metrics if type(metrics.get("step")) is int else None
