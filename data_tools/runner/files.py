"""Write a file whole or not at all, even if the machine stops."""

import errno
import os
from pathlib import Path

from nemo_longpo.errors import InputError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large",
}


def commit(path: Path, text: str, *, keep_existing: bool = False) -> None:
    """Put `text` at `path` by a rename. With `keep_existing`, an existing file stays as it is, also in a race.

    Raises InputError when there is no room; the partial file is removed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if not keep_existing:
            os.replace(partial, path)
        elif not path.exists():
            os.link(partial, path)
    except FileExistsError:
        pass  # another process was first
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(
            f"{path} cannot be written: {_FULL[error.errno]}; make room and run the same command again, finished parts "
            "are kept"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(directory: Path) -> None:
    """Clear what killed processes left behind, once everything is there."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)
