"""Which files of shards were hashed on which machine, so that a restarted run does not read all of them again.

A file counts as the one that was hashed while its inode, size, time of change and time of status change are the same;
the last is set by the kernel at every write and by nobody else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.atomic import write_file
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object


@dataclass(frozen=True, kw_only=True)
class HashedFile:
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, sha256: str) -> "HashedFile":
        """Return the state of a file whose hash is known. Raises OSError."""
        found = path.stat()
        return cls(
            inode=found.st_ino,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            sha256=sha256,
        )


Known = Mapping[str, Mapping[str, list[Any]]]
"""Machine → absolute path → the fields of `HashedFile`."""


def read_known(memory: Path) -> Known:
    """Return what the file says; nothing if it is not there or damaged, and then all shards are read again."""
    try:
        content = read_json_object(memory, "")
    except InputError:
        return {}
    return {machine: files for machine, files in content.items() if isinstance(files, dict)}


def is_known(known: Known, machine: str, path: Path, sha256: str) -> bool:
    return known.get(machine, {}).get(str(path.absolute())) == list(vars(HashedFile.of(path, sha256)).values())


def write_known(memory: Path, known: Known, found: Mapping[str, Mapping[str, HashedFile]]) -> None:
    """Add what machines found. Raises OSError, or InputError if the disk is full."""
    content = {machine: dict(files) for machine, files in known.items()}
    for machine, files in found.items():
        content.setdefault(machine, {}).update({path: list(vars(file).values()) for path, file in files.items()})
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_file(memory, json.dumps(content, indent=1) + "\n")
