"""InputError, the exception that means "the input is at fault, not the program", and other errors in one line."""

import zlib


class InputError(ValueError):
    """Bad input from the user: a file, a record, a setting.

    The message reads like advice, in one sentence or two: what is wrong, where (file, line, field), what to do.
    Command lines print it without a stack trace and exit with status 2.
    """


def one_line(error: BaseException) -> str:
    """Return a library's message without line breaks; its kind goes in front if it was not made for people."""
    message = " ".join(str(error).split())
    for_people = isinstance(error, OSError | ValueError | EOFError | zlib.error)
    return message if message and for_people else f"{type(error).__name__}: {message}"


ERROR_MARK = "longpo: error: "
"""What a command prints in front of its error sentence, on one line. Whoever started it finds the sentence by it."""


def error_sentence(log: str) -> str | None:
    """Return the last error sentence in what a command printed, or None if it printed none."""
    _, mark, behind = log.rpartition(ERROR_MARK)
    return behind.partition("\n")[0] if mark else None
