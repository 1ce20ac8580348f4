"""Write a file whole or not at all, even if the machine stops."""

import os
from pathlib import Path

from nemo_longpo.errors import explain_full_disk


def commit(path: Path, text: str, *, keep_existing: bool = False) -> None:
    """Put `text` at `path` by a rename. With `keep_existing`, an existing file stays as it is, also in a race.

    Raises InputError when there is no room; the partial file is removed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explain_full_disk(path), partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if not keep_existing:
            os.replace(partial, path)
        elif not path.exists():
            os.link(partial, path)
    except FileExistsError:
        pass  # another process was first
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(directory: Path) -> None:
    """Clear what killed processes left behind, once everything is there."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)
