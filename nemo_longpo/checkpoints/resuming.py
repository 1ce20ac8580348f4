"""From which checkpoint a run goes on, and when it must not begin."""

from pathlib import Path

from nemo_longpo.errors import InputError

from .run_directory import Checkpoints, describe_damage, list_checkpoints


def find_resume_point(folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's folder; None where nothing was ever saved.

    Raises:
        InputError: there are checkpoints, and none is complete.
    """
    found = list_checkpoints(folder)
    if found.newest is None and found.damaged:
        damaged = found.damaged[-1]
        raise InputError(
            f"{describe_damage(damaged)}, and {folder} holds no complete checkpoint to go on from; copy that one "
            f"again, or remove {damaged} to start the run over."
        )
    return found.newest


def describe_left_out(found: Checkpoints) -> list[str]:
    """A line for every checkpoint that would have been taken if it were complete."""
    lines = [f"{path} is left out: {describe_damage(path)}" for path in found.damaged_later]
    if found.newest is None:
        lines += [f"{path} is left out: the run was killed while it was written" for path in found.unfinished]
    return lines


def refuse_to_start_beside(folder: Path, start: Path | None) -> None:
    """A run saves into `folder`, so what lies there must be the run's own past, and `start` the end of it.

    Args:
        start: the checkpoint that training goes on from (or its `weights`); None where it begins with step 1.

    Raises:
        InputError: it holds something else, which the next resume would take for this run.
    """
    found = list_checkpoints(folder)
    latest = found.newest or (found.damaged[-1] if found.damaged else None)
    if latest is None:
        return
    directory = None if start is None else _without_weights(start.resolve())
    if directory == latest.resolve():
        return
    past = [*found.complete, *found.damaged]
    if directory is not None and directory in [path.resolve() for path in past]:
        raise InputError(
            f"The run would go back to {directory} although {latest} is newer; remove what is newer, or copy the "
            "older one elsewhere and give another log.log_dir."
        )
    raise InputError(
        f"{folder} holds checkpoints already ({latest.name}), and this run would start over beside them; to go on with "
        "them set resume.resume_if_exists=True and leave resume.resume_from_path unset, to start over remove them or "
        "give another log.log_dir."
    )


def _without_weights(path: Path) -> Path:
    return path.parent if path.name == "weights" else path
