"""A full disk is recognised in every exception that it is known to cause, and in no other."""

import errno
import logging
import os
import threading

import pytest
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from nemo_longpo.atomic import NO_ROOM
from nemo_longpo.megatron.full_disk import leave_to_main_thread, no_room

pytestmark = pytest.mark.slow

FULL = "the disk is full"
NO_MORE = "the disk took no more"
SHORT_ARCHIVE = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")


def wrapped(**failures: Exception) -> CheckpointException:
    return CheckpointException("write", {rank: _wrap_exception(error) for rank, error in enumerate(failures.values())})


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def as_context(error: BaseException, context: BaseException) -> BaseException:
    error.__context__ = context
    return error


CASES = {
    "written by Python": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), FULL),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
    "limit": (OSError(errno.EFBIG, "File too large"), "a file may not become that large here"),
    "as a cause": (caused(ValueError("x"), OSError(errno.ENOSPC, "")), FULL),
    "as the context": (as_context(SHORT_ARCHIVE, OSError(errno.ENOSPC, "")), FULL),
    "a writer's text": (wrapped(a=RuntimeError("Worker failure: [Errno 28] No space left on device")), FULL),
    "PyTorch's writer alone": (wrapped(a=RuntimeError(f"Worker failure: {SHORT_ARCHIVE}")), NO_MORE),
    "a stream": (RuntimeError("basic_ios::clear: iostream error"), NO_MORE),
    "the better of two": (wrapped(a=RuntimeError(str(SHORT_ARCHIVE)), b=RuntimeError("[Errno 28] No space")), FULL),
    "the other of two": (wrapped(a=RuntimeError("[Errno 28] No space"), b=RuntimeError(str(SHORT_ARCHIVE))), FULL),
    "another rank's": (wrapped(), None),
    "no permission": (PermissionError(errno.EACCES, "Permission denied"), None),
    "another code": (wrapped(a=RuntimeError("[Errno 5] Input/output error")), None),
    "reading": (RuntimeError("PytorchStreamReader failed reading zip archive: not a ZIP archive"), None),
    "a number": (ValueError("28 tokens"), None),
}


@pytest.mark.parametrize("case", CASES)
def test_reason(case):
    error, expected = CASES[case]
    assert no_room(error) == expected


@pytest.mark.parametrize("full", [True, False])
def test_threads_hide_only_a_full_disk(full, monkeypatch, capsys):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    leave_to_main_thread()

    def fail():
        raise OSError(errno.ENOSPC if full else errno.EIO, "no")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    handler = logging.FileHandler("/dev/full")
    handler.emit(logging.LogRecord("name", logging.INFO, "file", 1, "text", None, None))
    assert ("Traceback" in capsys.readouterr().err) == (not full)


def test_circular_causes():
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__cause__ = second, first
    assert no_room(first) is None
    assert NO_ROOM[errno.ENOSPC] == FULL
