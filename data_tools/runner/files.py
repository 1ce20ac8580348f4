"""Write a file whole or not at all, even if the machine stops."""

import os
from pathlib import Path

from nemo_longpo.errors import explain_full_disk


def commit(path: Path, text: str, *, keep_existing: bool = False) -> None:
    """Put `text` at `path` by a rename. With `keep_existing`, an existing file stays as it is, also in a race.

    Raises InputError when there is no room; the partial file is removed.
    """
    if keep_existing and path.exists():
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explain_full_disk(path), partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if keep_existing:
            os.link(partial, path)
        else:
            os.replace(partial, path)
    except FileExistsError:
        pass  # another process was first
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(directory: Path) -> None:
    """Clear what killed processes left behind, once everything is there."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)
