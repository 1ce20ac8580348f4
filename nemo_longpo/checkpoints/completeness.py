"""Whether all files of a checkpoint are there, as far as that shows without a record of them."""

import lzma
import zlib
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from nemo_longpo.errors import InputError, one_line

from .forms import NEMO, form_of
from .integrity import COPY_AGAIN

CONTEXT_FILES = ("io.json", "model.yaml")
"""In `context/` of every NeMo 2 checkpoint."""

WEIGHT_FILES = (".metadata", "metadata.json")
"""Beside the tensors of every Megatron `torch_dist` checkpoint."""

COMMON_FILE = "common.pt"
"""Beside them where Megatron-Core before 0.19 wrote them, with what is no tensor; in 0.19 that is `COMMON_OBJECT`."""

COMMON_OBJECT = "common_state/shard_0_1"

_ZIP_ERRORS = (
    *(BadZipFile, EOFError, OSError, ValueError, RuntimeError, ArithmeticError),
    *(zlib.error, lzma.LZMAError),
)
"""What zipfile raises over changed bytes: beside its own errors, for names that are no text, places outside the file,
and members that look encrypted or compressed."""


def missing_part(checkpoint: Path) -> str | None:
    """Return the first part that a checkpoint lacks, or has without content, relative to it; None if it has all."""
    form = form_of(checkpoint) or NEMO
    missing = next((part for part in form.parts if _problem(checkpoint / part)), None)
    tensors = f"{form.weights}/*.distcp".removeprefix("/")
    return missing or (None if any(checkpoint.glob(tensors)) else tensors)


def _problem(path: Path) -> str | None:
    if not path.is_file():
        return "is missing, so the checkpoint is incomplete"
    return None if path.stat().st_size else "is empty"


def require_files(directory: Path, names: Iterable[str]) -> None:
    """Raises InputError, naming the first one, if some of these files are missing or empty."""
    for name in names:
        if problem := _problem(directory / name):
            raise InputError(f"{directory / name} {problem}; {COPY_AGAIN}")


def require_sizes(directory: Path, ends: dict[str, int]) -> None:
    """Raises InputError if a file is missing, or shorter than `ends` (bytes by name) says."""
    for name, end in ends.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing from the checkpoint; {COPY_AGAIN}")
        size = path.stat().st_size
        if size < end:
            raise InputError(f"{path} is truncated: {size} bytes of at least {end}; {COPY_AGAIN}")


def require_complete(checkpoint: Path) -> None:
    """Raises InputError if a small file that training and export begin with is missing, empty or damaged.

    Those that are zip archives of `torch.save` are held to the checksums of their members.
    """
    form = form_of(checkpoint) or NEMO
    require_files(checkpoint, form.parts)
    for path in sorted((checkpoint / form.weights).glob("*.pt")):
        _check_archive(path)


def _check_archive(path: Path) -> None:
    try:
        with ZipFile(path) as archive:
            wrong = archive.testzip()
    except _ZIP_ERRORS as error:
        raise InputError(f"{path} is damaged: {one_line(error)}; {COPY_AGAIN}") from error
    if wrong is not None:
        raise InputError(f"{path} is damaged in {wrong}; {COPY_AGAIN}")
