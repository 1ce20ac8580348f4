"""An output is complete or not there, whatever happens while it is written."""

import errno
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.damage import assert_refused

from nemo_longpo.cli import main
from nemo_longpo.conversion.outputs import new_directory, require_free
from nemo_longpo.errors import InputError


def write(output: Path, content: str, *, overwrite: bool = True) -> None:
    with new_directory(output, overwrite=overwrite, size=10) as new:
        (new / "config.json").write_text(content)


def contents(output: Path) -> dict[str, str]:
    """Of all that lies where the output does."""
    found = [path for path in output.parent.rglob("*") if path.is_file()]
    return {str(path.relative_to(output.parent)): path.read_text() for path in found}


@pytest.fixture
def output(tmp_path) -> Path:
    """Holds an old model."""
    write(tmp_path / "place" / "output", "old")
    return tmp_path / "place" / "output"


def test_the_new_replaces_the_old(output):
    write(output, "new")
    assert contents(output) == {"output/config.json": "new"}


def test_a_link_keeps_leading_to_the_output(output, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(output)
    write(link, "new")
    assert link.is_symlink()
    assert contents(output) == {"output/config.json": "new"}


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_stopped_work_leaves_the_old_output(problem, output):
    def stop() -> None:
        with new_directory(output, overwrite=True, size=10) as new:
            (new / "config.json").write_text("half")
            raise problem

    with pytest.raises(problem):
        stop()
    assert contents(output) == {"output/config.json": "old"}


def test_existing_output_needs_overwrite(output):
    with pytest.raises(InputError, match="exists already; pass --overwrite to replace it"):
        require_free(output, overwrite=False)
    with pytest.raises(InputError, match="exists already"):
        write(output, "new", overwrite=False)
    assert contents(output) == {"output/config.json": "old"}


def test_an_output_that_appears_meanwhile_stays(output):
    def start() -> None:
        with new_directory(output, overwrite=False, size=10):
            aside.rename(output)

    aside = output.rename(output.with_name("aside"))
    with pytest.raises(InputError, match="exists already"):
        start()
    assert contents(output) == {"output/config.json": "old"}


def test_a_replacement_that_fails_gives_the_old_back(output, monkeypatch):
    rename = Path.rename

    def fail_for_the_new(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise PermissionError
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(PermissionError):
        write(output, "new")
    assert contents(output) == {"output/config.json": "old"}


def test_everything_is_on_the_disk_before_it_appears(tmp_path, monkeypatch):
    output = tmp_path / "output"
    flushed = []

    def fsync(descriptor: int) -> None:
        assert not output.exists()
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr("os.fsync", fsync)
    with new_directory(output, overwrite=False, size=10) as new:
        (new / "weights").mkdir()
        (new / "weights" / "tensors").write_text("")
    assert sorted(flushed) == ["new", "tensors", "weights"]


def test_only_models_are_replaced(output):
    (output / "config.json").rename(output / "thesis.tex")
    with pytest.raises(InputError, match="is no model, and --overwrite replaces nothing else"):
        require_free(output, overwrite=True)
    (output / "thesis.tex").unlink()
    require_free(output, overwrite=True)


@pytest.mark.parametrize("place", ["output", "not/there/yet"])
def test_a_small_disk_is_refused_before_anything_is_written(place, output):
    size = 10 * shutil.disk_usage(output).total

    def start() -> None:
        with new_directory(output.parent / place, overwrite=True, size=size):
            pytest.fail("there is no room")

    message = f"{place} takes {size / 1e9:.3g} GB and the disk of {output.parent} has"
    with pytest.raises(InputError, match=re.escape(message)):
        start()
    assert contents(output) == {"output/config.json": "old"}


WORK = """
import sys, time
from pathlib import Path
from nemo_longpo.conversion.outputs import new_directory
with new_directory(Path(sys.argv[1]), overwrite=True, size=10) as new:
    (new / "config.json").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_run(output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of writing `output`."""
    with subprocess.Popen([sys.executable, "-c", WORK, output], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        try:
            yield child
        finally:
            child.kill()


def test_after_a_kill_the_same_command_succeeds(output, capsys):
    with another_run(output) as child:
        child.kill()
        child.wait()
    assert contents(output).pop("output/config.json") == "old"
    assert len(contents(output)) == 2
    write(output, "new")
    assert "which a run that was killed had left" in capsys.readouterr().err
    assert contents(output) == {"output/config.json": "new"}


def test_sigterm_cleans_up(output):
    with another_run(output) as child:
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 128 + signal.SIGTERM
    assert contents(output) == {"output/config.json": "old"}


def test_what_another_run_is_writing_stays(output):
    with another_run(output) as child:
        before = contents(output)
        with pytest.raises(InputError, match=f"is being written by process {child.pid}; wait for it to end"):
            write(output, "new")
        assert contents(output) == before
        write(output.with_name("output2"), "another")


def leave_behind(output: Path, host: str) -> Path:
    """What a kill between taking the old output away and putting the new one there leaves."""
    workplace = output.with_name(f".{output.name}.partial-{host}-1")
    (workplace / "new").mkdir(parents=True)
    output.rename(workplace / "old")
    return workplace


def test_a_kill_between_old_and_new_gives_the_old_back(output):
    leave_behind(output, socket.gethostname())
    with pytest.raises(InputError, match="exists already"):
        write(output, "new", overwrite=False)
    assert contents(output) == {"output/config.json": "old"}


def test_what_another_machine_has_left_stays(output, capsys):
    workplace = leave_behind(output, "elsewhere")
    write(output, "new")
    assert f"left {workplace} alone" in capsys.readouterr().err
    assert contents(output) == {"output/config.json": "new", f"{workplace.name}/old/config.json": "old"}


def test_what_cannot_be_removed_stays(output, capsys, monkeypatch):
    """Another user's, or on a file system without locks."""
    workplace = leave_behind(output, socket.gethostname())

    def refuse(*arguments: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr("fcntl.flock", refuse)
    write(output, "new")
    assert f"left {workplace} alone (not yours)" in capsys.readouterr().err
    assert contents(output) == {"output/config.json": "new", f"{workplace.name}/old/config.json": "old"}


def test_a_full_disk_is_named_and_nothing_stays(output):
    def fill() -> None:
        with new_directory(output, overwrite=True, size=10):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="the disk is full; make room and run the same command again, nothing of it"):
        fill()
    assert contents(output) == {"output/config.json": "old"}


def test_the_command_replaces_on_request(hf_models, nemo_checkpoints, output, capsys):
    command = ["export", "--checkpoint", str(nemo_checkpoints["mistral"]), "--output", str(output)]
    assert_refused(command, "exists already; pass --overwrite", output.parent, capsys)
    assert main(["convert", *command, "--overwrite", "--workers", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(output)}
    assert {path.name for path in output.iterdir()} == {path.name for path in hf_models["mistral"].iterdir()}
