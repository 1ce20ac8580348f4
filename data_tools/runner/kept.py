"""Finished requests of parts that are not finished: what a process that is stopped leaves to the next one."""

import json
import os
import socket
from pathlib import Path
from typing import Any

from nemo_longpo.atomic import explain_full_disk

_HOST = socket.gethostname()


class Kept:
    """Values by key, for one part of an output: hidden files beside the parts, one per process that worked on it.

    Values are JSON. A line that was cut by a kill is as good as none. `made_by` names everything that shapes a value
    beside its key: what was kept under another name is not found.
    """

    def __init__(self, output: Path, part: int, made_by: str):
        self._output, self._part = output, part
        self._name = f".kept-{part:05d}-{made_by}"
        self._found: dict[str, Any] | None = None

    def get(self, key: str) -> Any | None:
        if self._found is None:
            self._found = {}
            for path in sorted(self._output.glob(f"{self._name}.*.jsonl")):
                self._found.update(_read(path))
        return self._found.get(key)

    def put(self, key: str, value: Any) -> None:
        """Raises InputError when there is no room."""
        path = self._output / f"{self._name}.{_HOST}.{os.getpid()}.jsonl"
        with explain_full_disk(path), path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([key, value])}\n")  # a line of its own, also behind one that was cut

    def drop(self) -> None:
        """The part is there, or what was kept of it is of no use."""
        for path in self._output.glob(f".kept-{self._part:05d}-*.jsonl"):
            path.unlink(missing_ok=True)


def remove_kept(directory: Path) -> None:
    """Clear what killed processes left behind, once all parts are there."""
    for path in directory.glob(".kept-*.jsonl"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    found = {}
    for line in path.read_bytes().splitlines():
        try:
            key, value = json.loads(line)
        except ValueError:  # cut, or empty
            continue
        found[key] = value
    return found
