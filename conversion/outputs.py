"""Output directories that appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_longpo.errors import InputError


def require_free(output: Path, *, overwrite: bool) -> None:
    """Refuse an output path that is taken or cannot be, before any work. `overwrite` allows replacing a directory."""
    above = next(parent for parent in output.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{above} is not a directory; choose another --output")
    if output.is_dir() and overwrite:
        return
    if output.exists() or output.is_symlink():
        advice = "pass --overwrite to replace it, or choose another --output" if output.is_dir() else "choose another"
        raise InputError(f"{output} exists already; {advice}")


def require_apart(output: Path, *inputs: Path) -> None:
    """Refuse an output that is an input, or lies in one, or holds one: replacing it would take the input along."""
    place = output.resolve()
    for given in inputs:
        source = given.resolve()
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise InputError(f"the output {output} and the input {given} lie in one another; choose another --output")


@contextmanager
def new_directory(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a working directory beside `output` that takes its name once the block has ended well.

    On any failure, Ctrl-C included, the working directory goes and an existing output stays as it was.
    """
    require_free(output, overwrite=overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.parent / f".{output.name}.partial-{os.getpid()}"
    replaced = output.parent / f".{output.name}.replaced-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if output.exists():
            output.rename(replaced)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)
