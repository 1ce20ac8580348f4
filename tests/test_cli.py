"""The meaning of a command's exit status."""

import errno
import os
import subprocess
import sys

import pytest

from nemo_longpo import cli
from nemo_longpo.errors import InputError


def raising(error):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (("convert", "verify", "a", "b"), "nemo_longpo.conversion.comparison.verify.verify"),
        (("data", "inspect", "shards", "--verify"), "nemo_longpo.data_tools.inspection.inspect_shards.inspect_shards"),
        (
            ("plan", "--model", "mistral-7b", "--length", "1024", "--gpus", "1"),
            "nemo_longpo.costs.model_shape.load_shape",
        ),
        (("doctor",), "nemo_longpo.doctor.render"),
    ],
)
def test_a_crash_is_no_answer(command, place, monkeypatch, capsys):
    """Status 1 means that two models differ, that nothing fits, or that this machine cannot train."""

    def crash(*_, **__):
        raise ZeroDivisionError("in \x1b[31mred")

    monkeypatch.setattr(place, crash)
    assert cli.main(list(command)) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last):\n" in err
    assert "ZeroDivisionError: in \\x1b[31mred\n" in err
    assert err.endswith(
        "longpo: this is a fault of the program, not of its input; please report it with the lines above\n"
    )


@pytest.mark.parametrize(("error", "status"), [(InputError("no such file"), 2), (KeyboardInterrupt(), 130)])
def test_what_is_no_crash_shows_no_traceback(error, status, monkeypatch, capsys):
    monkeypatch.setattr("nemo_longpo.doctor.render", raising(error))
    assert cli.main(["doctor"]) == status
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "name", "sentence"),
    [
        (errno.EROFS, "work/.shards.partial-host-7/new", "work/shards cannot be used: the file system is read-only; "),
        (errno.EACCES, ".model.partial-host-7", "model cannot be used: you do not have the right to it; "),
        (errno.ENOTDIR, "notes.md/out", "notes.md/out cannot be used: a part of this path is a file; "),
        (errno.ENOSPC, None, "a file cannot be written: the disk is full; make room and run it again\n"),
    ],
)
def test_a_place_that_cannot_be_used_is_no_crash(code, name, sentence, monkeypatch, capsys):
    monkeypatch.setattr("nemo_longpo.doctor.render", raising(OSError(code, "of the system", name)))
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith(f"longpo: error: {sentence}")


@pytest.mark.parametrize(
    "command",
    [["--help"], ["plan", "--model", "mistral-7b", "--length", "1024", "--gpus", "1"], ["--no-such-option"]],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("buffered", [True, False], ids=["at the end", "in the midst"])
def test_a_reader_may_leave(command, buffered):
    """As `| head -1` does: whatever a command prints, nothing is said and no fault is reported."""
    words = [sys.executable, *([] if buffered else ["-u"]), "-m", "nemo_longpo.cli", *command]
    one_pipe = subprocess.STDOUT if command == ["--no-such-option"] else subprocess.PIPE
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=one_pipe, text=True, env=plain)
    child.stdout.close()
    said = child.stderr.read() if child.stderr else ""
    assert child.wait(30) in ((0, 2) if command[0].startswith("--") else (141,))
    assert said == ""
