"""Whether all files of a checkpoint are there, as far as that shows without a record of them."""

import lzma
import zlib
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from nemo_longpo.errors import InputError, one_line

from .integrity import COPY_AGAIN

CONTEXT_FILES = ("io.json", "model.yaml")
"""In `context/` of every NeMo 2 checkpoint."""

WEIGHT_FILES = (".metadata", "metadata.json", "common.pt")
"""In `weights/` of every Megatron `torch_dist` checkpoint, beside those with the tensors."""

_ZIP_ERRORS = (
    *(BadZipFile, EOFError, OSError, ValueError, RuntimeError, ArithmeticError),
    *(zlib.error, lzma.LZMAError),
)
"""What zipfile raises over changed bytes: beside its own errors, for names that are no text, places outside the file,
and members that pass for encrypted or compressed."""


def require_files(directory: Path, names: Iterable[str]) -> None:
    """Raises InputError for the first of these files that is missing or empty."""
    for name in names:
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing, so the checkpoint is incomplete; {COPY_AGAIN}")
        if not path.stat().st_size:
            raise InputError(f"{path} is empty; {COPY_AGAIN}")


def require_sizes(directory: Path, ends: dict[str, int]) -> None:
    """Raises InputError for a file that is missing, or shorter than `ends` (bytes by name) says."""
    for name, end in ends.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing from the checkpoint; {COPY_AGAIN}")
        size = path.stat().st_size
        if size < end:
            raise InputError(f"{path} is truncated: {size} bytes of at least {end}; {COPY_AGAIN}")


def require_whole_archive(path: Path) -> None:
    """Raises InputError if a file of `torch.save` (a zip archive) is cut, or a member's checksum is wrong."""
    try:
        with ZipFile(path) as archive:
            wrong = archive.testzip()
    except _ZIP_ERRORS as error:
        raise InputError(f"{path} is damaged: {one_line(error)}; {COPY_AGAIN}") from error
    if wrong is not None:
        raise InputError(f"{path} is damaged in {wrong}; {COPY_AGAIN}")


def require_complete(checkpoint: Path) -> None:
    """The small files that training and export begin with. Raises InputError."""
    require_files(checkpoint / "context", CONTEXT_FILES)
    require_files(checkpoint / "weights", WEIGHT_FILES)
    require_whole_archive(checkpoint / "weights" / "common.pt")
