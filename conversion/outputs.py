"""Check where a conversion may write, and put the new model there."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from nemo_longpo.atomic import new_directory
from nemo_longpo.checkpoints.forms import TRACKERS
from nemo_longpo.errors import InputError

MODEL_MARKS = ("config.json", "context", *TRACKERS)
"""Every model directory holds one of these: Hugging Face's, NeMo's, Megatron-Bridge's."""


def require_free(output: Path, *, overwrite: bool) -> None:
    """Raises InputError if an output path is taken or cannot be made. `overwrite` allows replacing a model."""
    above = next(parent for parent in output.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{above} is not a directory; choose another --output")
    if output.is_dir() and overwrite:
        if any(output.iterdir()) and not any((output / mark).exists() for mark in MODEL_MARKS):
            raise InputError(f"{output} is no model, and --overwrite replaces nothing else; choose another --output")
        return
    if output.exists() or output.is_symlink():
        advice = "pass --overwrite to replace it, or choose another --output" if output.is_dir() else "choose another"
        raise InputError(f"{output} exists already; {advice}")


def require_apart(output: Path, *inputs: Path) -> None:
    """Raises InputError if an output is an input, lies in one, or holds one: replacing it would remove the input."""
    place = output.resolve()
    for given in inputs:
        source = given.resolve()
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise InputError(f"the output {output} and the input {given} lie in one another; choose another --output")


def new_model(output: Path, *, overwrite: bool, size: int) -> AbstractContextManager[Path]:
    """Return `new_directory` of `size` bytes, which replaces only what `require_free` allows."""
    return new_directory(output, size=size, check=partial(require_free, overwrite=overwrite))


def bytes_of(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)
