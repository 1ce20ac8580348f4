"""Which files of shards were hashed on which machine, so that a restarted run does not read all of them again.

A file counts as the one that was hashed while its inode, size, time of change and time of status change are the same.
The kernel sets the last at every write, and nobody else can.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from nemo_longpo.atomic import write_file
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

State = list[int | str]
"""Inode, size, time of change and of status change (nanoseconds), and sha256 of a file."""

Known = Mapping[str, Mapping[str, State]]
"""Machine → absolute path → state."""


def state_of(path: Path, sha256: str) -> State:
    """Return the state of a file that has this sha256. Raises OSError."""
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, sha256]


def read_known(memory: Path) -> Known:
    """Return what the file says; nothing if it is not there or damaged, and then all shards are read again."""
    try:
        content = read_json_object(memory, "")
    except InputError:
        return {}
    return {machine: files for machine, files in content.items() if isinstance(files, dict)}


def is_known(known: Known, machine: str, path: Path, sha256: str) -> bool:
    return known.get(machine, {}).get(str(path.absolute())) == state_of(path, sha256)


def write_known(memory: Path, known: Known, found: Known) -> None:
    """Add what machines found. Raises OSError, or InputError if the disk is full."""
    content = {machine: {**known.get(machine, {}), **found.get(machine, {})} for machine in {**known, **found}}
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_file(memory, json.dumps(content, indent=1) + "\n")
