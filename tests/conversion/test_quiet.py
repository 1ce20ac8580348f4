"""What libraries say while they load is not in the way of the one line that matters."""

import os
import subprocess
import sys

import pytest

from nemo_longpo.conversion.quiet import VERBOSE, quiet_libraries
from nemo_longpo.errors import InputError


def talk(error: type[Exception] | None = None) -> None:
    os.write(1, b"told the file descriptor\n")
    os.write(2, b"told the other one\n")
    subprocess.run([sys.executable, "-c", "print('told by a child')"], check=True)
    if error is not None:
        raise error


def test_nothing_is_heard(capfd):
    print("before", flush=True)
    with quiet_libraries():
        talk()
    print("after", file=sys.stderr)
    assert capfd.readouterr() == ("before\n", "after\n")


def test_everything_is_heard_after_a_crash(capfd):
    with pytest.raises(RuntimeError), quiet_libraries():
        talk(RuntimeError)
    out, err = capfd.readouterr()
    assert out == ""
    assert sorted(err.splitlines()) == ["told by a child", "told the file descriptor", "told the other one"]


def test_bad_input_speaks_for_itself(capfd):
    with pytest.raises(InputError), quiet_libraries():
        talk(InputError)
    assert capfd.readouterr() == ("", "")


def test_everything_is_heard_where_it_is_asked_for(capfd, monkeypatch):
    monkeypatch.setenv(VERBOSE, "1")
    with quiet_libraries():
        talk()
    assert "told the file descriptor" in capfd.readouterr().out


def test_an_import_says_what_it_wrote(hf_models, tmp_path):
    """In a process of its own, where NeMo is loaded for the first time."""
    command = [sys.executable, "-m", "nemo_longpo.cli", "convert", "import", "--model", str(hf_models["mistral"])]
    environment = {name: value for name, value in os.environ.items() if name != VERBOSE}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "nemo")], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == f"wrote {tmp_path / 'nemo'}\n"
    assert all(part.startswith("import: ") for part in done.stderr.replace("\r", "\n").split("\n") if part), done.stderr
