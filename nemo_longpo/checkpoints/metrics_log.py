"""The lines of `metrics.jsonl`: appended while a run trains, sorted out when it is resumed."""

from pathlib import Path

from nemo_longpo.atomic import write_file
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import parse_json_object


def keep_steps(path: Path, last: int) -> int:
    """Drop the lines of steps behind `last`, which will be trained again, and what is no line of metrics.

    A full disk or a loss of power leaves a torn last line, or zeros in its place; it must not stop the run, whose
    weights are in its checkpoints. The file is written anew beside the old one, so it is whole at every moment.

    Returns:
        How many lines could not be read.

    Raises:
        InputError: the disk is full.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    steps = [_step(line) for line in lines]
    kept = b"".join(line for line, step in zip(lines, steps, strict=True) if step is not None and step <= last)
    if kept != content:
        write_file(path, kept, kept="nothing is lost")
    return steps.count(None)


def _step(line: bytes) -> int | None:
    """None for what is not a whole line of metrics."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = parse_json_object(line, "metrics", "drop it").get("step")
    except InputError:
        return None
    return step if type(step) is int else None
