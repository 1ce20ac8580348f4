"""Where a run's files lie, and which of its checkpoints is the newest that is complete.

`log.log_dir` holds a folder of the run's name with `checkpoints` in it, and `tb_logs/NAME/metrics.jsonl`. Only the
checkpoints themselves count: links beside them (`…-last`) go astray when a run is killed, copied or moved.

NeMo puts a file `STEP-unfinished` beside a checkpoint before it writes or removes it, and takes it away when all ranks
are done. Of a checkpoint that is written, Megatron's `common.pt` comes first and its `metadata.json` or, when it is not
written in the background, NeMo's context last.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from nemo_longpo.errors import InputError

from .completeness import CONTEXT_FILES, WEIGHT_FILES

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
LAST = "-last"
UNFINISHED = "-unfinished"

_PARTS = (*(f"weights/{name}" for name in WEIGHT_FILES), *(f"context/{name}" for name in CONTEXT_FILES))
_STEP = re.compile(r"(?:step|consumed_samples)=(\d+)")


def metrics_file(log_dir: Path, name: str = "longpo") -> Path:
    """The metrics of each step, for a run that is called `name` (`log.name`)."""
    return log_dir / "tb_logs" / name / METRICS


def missing_part(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, or has without content, relative to it; None if it is complete."""
    missing = [name for name in _PARTS if not _has_content(checkpoint / name)]
    if not missing and not any((checkpoint / "weights").glob("*.distcp")):
        missing = ["weights/*.distcp"]
    return missing[0] if missing else None


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def is_unfinished(checkpoint: Path) -> bool:
    """Whether NeMo is writing or removing it, or was when the run was killed."""
    return checkpoint.with_name(checkpoint.name + UNFINISHED).exists()


@dataclass(frozen=True)
class Checkpoints:
    """What lies in a `checkpoints` folder, each list from the oldest to the newest.

    `damaged` ones have no mark that NeMo was busy with them, and yet lack something.
    """

    folder: Path
    complete: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)

    @property
    def newest(self) -> Path | None:
        """Of the complete ones."""
        return self.complete[-1] if self.complete else None

    @property
    def damaged_later(self) -> list[Path]:
        """Damaged ones that would be the newest if they were complete."""
        return [path for path in self.damaged if self.newest is None or _age(path) > _age(self.newest)]


def list_checkpoints(folder: Path) -> Checkpoints:
    """Of one folder; empty if there is none. The same on every rank of a run that shares the file system."""
    found = Checkpoints(folder)
    paths = folder.iterdir() if folder.is_dir() else ()
    for path in sorted((path for path in paths if not path.is_symlink() and path.is_dir()), key=_age):
        if is_unfinished(path):
            found.unfinished.append(path)
        elif missing_part(path) is None:
            found.complete.append(path)
        elif _is_checkpoint(path) or _STEP.search(path.name):
            found.damaged.append(path)
    return found


def _age(checkpoint: Path) -> tuple[int, float]:
    """By the step in its name, which copying does not change; names without one come first, by time."""
    step = _STEP.search(checkpoint.name)
    written = checkpoint / "weights" / "metadata.json"
    return int(step[1]) if step else -1, written.stat().st_mtime if written.exists() else 0.0


def _is_checkpoint(path: Path) -> bool:
    return (path / "weights").is_dir() or (path / "context").is_dir()


def _is_model(path: Path) -> bool:
    return _is_checkpoint(path) or (path / "config.json").is_file()


def find_folders(path: Path) -> list[Path]:
    """The folders of checkpoints that `path` stands for: its own, that of its run, or those of all runs in it."""
    if path.name == CHECKPOINTS or (path.is_dir() and any(map(_is_step, path.iterdir()))):
        return [path]
    for pattern in (CHECKPOINTS, f"*/{CHECKPOINTS}", f"*/*/{CHECKPOINTS}"):
        if found := sorted(folder for folder in path.glob(pattern) if folder.is_dir()):
            return found
    return []


def _is_step(path: Path) -> bool:
    return _STEP.search(path.name) is not None and _is_checkpoint(path)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: the newest complete one of a run directory, else the path itself.

    A run directory is what was given as `log.log_dir`, the folder of the run's name in it, or its `checkpoints`.

    Raises:
        InputError: a run without a complete checkpoint, several runs, a checkpoint that is not finished, a link to
            nothing.
    """
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"{path} is a link to {os.readlink(path)}, which is not there; give the run's directory instead"
        )
    if _is_model(path):
        real = path.resolve()
        if is_unfinished(real):
            raise InputError(
                f"{real} is not finished: a run writes or removes it, or was killed while it did "
                f"({real.name}{UNFINISHED} lies beside it); give the run's directory instead"
            )
        return path
    folders = find_folders(path)
    if len(folders) > 1:
        names = ", ".join(str(folder.parent.relative_to(path)) for folder in folders)
        raise InputError(f"{path} holds the checkpoints of several runs ({names}); give one of them")
    if not folders:
        return path
    found = list_checkpoints(folders[0])
    if found.newest is None:
        raise InputError(f"{folders[0]} holds no complete checkpoint{_why_none(found)}")
    return found.newest


def _why_none(found: Checkpoints) -> str:
    if found.damaged:
        return f": {describe_damage(found.damaged[-1])}"
    if found.unfinished:
        return f": {found.unfinished[-1].name} was not finished"
    return ""


def describe_damage(checkpoint: Path) -> str:
    return f"{checkpoint / str(missing_part(checkpoint))} is missing or empty"


def point_last_link(checkpoint: Path) -> None:
    """Leave one `…-last` link beside a checkpoint, the one to it, relative so that it may be copied and moved."""
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
