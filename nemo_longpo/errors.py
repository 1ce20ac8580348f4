"""The one exception that means "the input is at fault, not the program", and what a full disk says with it."""

import errno
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input from the user: a file, a record, a setting.

    The message reads like advice, in one sentence or two: what is wrong, where (file, line, field), what to do.
    Command lines print it without a stack trace and exit with status 2.
    """


def one_line(error: BaseException) -> str:
    """A library's message without line breaks; of an error that was not made for people, its kind in front."""
    message = " ".join(str(error).split())
    for_people = isinstance(error, OSError | ValueError | EOFError | zlib.error)
    return message if message and for_people else f"{type(error).__name__}: {message}"


NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not become that large here",
}
"""What the operating system's codes for "no room" mean."""


@contextmanager
def explain_full_disk(path: Path, kept: str = "finished parts are kept") -> Iterator[None]:
    """Turn the operating system's word for "no room" while writing `path` into an InputError; nothing else."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(
            f"{path} cannot be written: {NO_ROOM[error.errno]}; make room and run the same command again, {kept}"
        ) from error
