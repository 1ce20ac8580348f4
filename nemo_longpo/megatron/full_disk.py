"""Recognise a full disk in any exception that it causes."""

import logging
import re
import threading
from collections.abc import Iterator

from torch.distributed.checkpoint.api import CheckpointException

from nemo_longpo.atomic import NO_ROOM

_CODE = re.compile(r"\[Errno (\d+)\]")
_TORCH_WRITER = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing|basic_ios::clear")
"""Messages of PyTorch's zip writer, which hides the operating system's error."""


def no_room(error: BaseException) -> str | None:
    """Return the reason if a full disk caused an exception; else None.

    Megatron's writers run in their own processes and threads. They raise new exceptions with the text of the first one,
    and Megatron wraps those of all ranks in one.
    """
    reasons = [reason for each in _chain(error) if (reason := _reason(each))]
    return next((reason for reason in reasons if reason != _UNKNOWN), _UNKNOWN if reasons else None)


_UNKNOWN = "the disk took no more"


def leave_to_main_thread() -> None:
    """Keep other threads from printing tracebacks for a full disk.

    TensorBoard's thread passes its error to the main thread, and log handlers print one for each record.
    """
    logging.raiseExceptions = False
    threading.excepthook = _tell_unless_full


def _tell_unless_full(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None or no_room(ended.exc_value) is None:
        threading.__excepthook__(ended)


def _reason(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return NO_ROOM[error.errno]
    if isinstance(error, CheckpointException):  # its text only repeats that of its failures
        return None
    text = str(error)
    named = [NO_ROOM[int(code)] for code in _CODE.findall(text) if int(code) in NO_ROOM]
    return named[0] if named else _UNKNOWN if _TORCH_WRITER.search(text) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception, the exceptions of other ranks that it wraps, and their causes."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, CheckpointException):
            waiting += [failure for failure, _ in each.failures.values()]
