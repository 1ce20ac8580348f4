"""Small files that are there whole or not at all, whatever stops the process that writes them."""

import os
from pathlib import Path

from nemo_longpo.errors import explain_full_disk


def write_whole(path: Path, content: bytes, kept: str) -> None:
    """Write beside the file's place, flush to the disk, rename.

    Raises:
        InputError: the disk is full; `kept` ends the sentence. What was there before stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with explain_full_disk(path, kept):
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
