"""The lines of a run's metrics: appended while it trains, read by everyone, sorted out when it is resumed."""

from pathlib import Path
from typing import Any

from nemo_longpo.atomic import write_file
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import parse_json_object

from .run_directory import RUN_NAME, metrics_file


def read_metrics(log_dir: Path, name: str = RUN_NAME) -> list[dict[str, Any]]:
    """Return the metrics of each optimizer step of a run so far; what is no whole line of metrics is left out."""
    path = metrics_file(log_dir, name)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [metrics for line in lines if (metrics := _parse(line)) is not None]


def keep_steps(path: Path, last: int) -> int:
    """Drop the lines of steps after `last`, which will be trained again, and what is no line of metrics.

    A full disk or a loss of power leaves a torn last line, or zeros in its place. It must not stop the run, whose
    weights are in its checkpoints. Returns how many lines could not be read. Raises InputError if the disk is full.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    lines = [(line, _parse(line)) for line in content.splitlines(keepends=True)]
    kept = b"".join(line for line, metrics in lines if metrics is not None and metrics["step"] <= last)
    if kept != content:
        write_file(path, kept, kept="nothing is lost")
    return sum(metrics is None for _, metrics in lines)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return None for what is not a whole line of metrics."""
    if not line.endswith(b"\n"):
        return None
    try:
        metrics = parse_json_object(line, "metrics", "drop it")
    except InputError:
        return None
    return metrics if type(metrics.get("step")) is int else None
