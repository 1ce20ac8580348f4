"""Files and directories are complete or absent, whatever happens while they are written."""

import errno
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from nemo_longpo.atomic import new_directory, new_file, remove_leftovers, write_file
from nemo_longpo.errors import InputError


def allow(output: Path) -> None:
    """Allow replacing any output."""


def write(output: Path, content: str) -> None:
    with new_directory(output, size=10, check=allow) as new:
        (new / "config.json").write_text(content)


def contents(output: Path) -> dict[str, str]:
    """Return the content of the output's parent directory."""
    found = [path for path in output.parent.rglob("*") if path.is_file()]
    return {str(path.relative_to(output.parent)): path.read_text() for path in found}


@pytest.fixture
def output(tmp_path) -> Path:
    """An output with old content."""
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
        with new_directory(output, check=allow) as new:
            (new / "config.json").write_text("half")
            raise problem

    with pytest.raises(problem):
        stop()
    assert contents(output) == {"output/config.json": "old"}


def test_an_output_that_appears_meanwhile_stays(output):
    def start() -> None:
        with new_directory(output):
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
    with new_directory(output) as new:
        (new / "weights").mkdir()
        (new / "weights" / "tensors").write_text("")
    assert sorted(flushed) == ["new", "tensors", "weights"]


@pytest.mark.parametrize("place", ["output", "not/there/yet"])
def test_a_small_disk_is_refused_before_anything_is_written(place, output):
    size = 10 * shutil.disk_usage(output).total

    def start() -> None:
        with new_directory(output.parent / place, size=size, check=allow):
            pytest.fail("there is no room")

    message = f"{place} takes {size / 1e9:.3g} GB and the disk of {output.parent} has"
    with pytest.raises(InputError, match=re.escape(message)):
        start()
    assert contents(output) == {"output/config.json": "old"}


WORK = """
import sys, time
from pathlib import Path
from nemo_longpo.atomic import new_directory
with new_directory(Path(sys.argv[1]), check=lambda output: None) as new:
    (new / "config.json").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
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


def test_another_run_for_the_same_output_is_refused(output):
    with another_run(output) as child:
        before = contents(output)
        with pytest.raises(InputError, match=f"is being written by process {child.pid}; wait for it to end"):
            write(output, "new")
        assert contents(output) == before
        write(output.with_name("output2"), "another")


def leave_behind(output: Path, host: str) -> Path:
    """Leave the files of a kill between the removal of the old output and the rename of the new one."""
    workplace = output.with_name(f".{output.name}.partial-{host}-1")
    (workplace / "new").mkdir(parents=True)
    output.rename(workplace / "old")
    return workplace


def test_a_kill_between_old_and_new_gives_the_old_back(output):
    leave_behind(output, socket.gethostname())
    with pytest.raises(InputError, match="exists already"):
        with new_directory(output):
            pass
    assert contents(output) == {"output/config.json": "old"}


def test_leftover_of_another_machine_stays(output, capsys):
    workplace = leave_behind(output, "elsewhere")
    write(output, "new")
    assert f"left {workplace} alone" in capsys.readouterr().err
    assert contents(output) == {"output/config.json": "new", f"{workplace.name}/old/config.json": "old"}


def test_leftover_without_permission_stays(output, capsys, monkeypatch):
    """The leftover of another user, or on a file system without locks."""
    workplace = leave_behind(output, socket.gethostname())

    def refuse(*arguments: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr("fcntl.flock", refuse)
    write(output, "new")
    assert f"left {workplace} alone (not yours)" in capsys.readouterr().err
    assert contents(output) == {"output/config.json": "new", f"{workplace.name}/old/config.json": "old"}


def test_a_full_disk_is_named_and_nothing_stays(output):
    def fill() -> None:
        with new_directory(output, check=allow):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="the disk is full; make room and run the same command again, nothing of it"):
        fill()
    assert contents(output) == {"output/config.json": "old"}


def test_removing_the_new_directory_leaves_the_output(output):
    with new_directory(output) as new:
        new.rmdir()
    assert contents(output) == {"output/config.json": "old"}


def test_an_empty_output_is_replaced(tmp_path):
    (tmp_path / "output").mkdir()
    with new_directory(tmp_path / "output") as new:
        (new / "file").write_text("new")
    assert contents(tmp_path / "output") == {"output/file": "new"}


def test_write_file_replaces_or_keeps(tmp_path):
    write_file(tmp_path / "a", "one")
    write_file(tmp_path / "a", b"two")
    write_file(tmp_path / "a", "three", keep_existing=True)
    write_file(tmp_path / "b", "naïve 你好", keep_existing=True)
    assert (tmp_path / "a").read_text() == "two"
    assert (tmp_path / "b").read_text(encoding="utf-8") == "naïve 你好"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_first_of_two_writers_is_kept(tmp_path, monkeypatch):
    """The other process writes between the check and the write."""
    path = tmp_path / "a"
    monkeypatch.setattr("os.fsync", lambda descriptor: path.write_text("first"))
    write_file(path, "second", keep_existing=True)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


# The kernel refuses to let this process write files of more than 64 KiB, as a full disk refuses at some byte.
LIMITED = """
import resource, sys
from pathlib import Path
from nemo_longpo.atomic import write_file
from nemo_longpo.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
write_file(Path(sys.argv[1]) / "small", "x")
try:
    write_file(Path(sys.argv[1]) / "large", "x" * (1 << 20), kept="all is well")
except InputError as error:
    print(error)
"""


def test_no_room_for_a_file_is_an_input_error(tmp_path):
    said = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "large cannot be written: a file may not become that large here; make room" in said.stdout
    assert said.stdout.endswith(", all is well\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_other_failures_are_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "missing" / "a", "x")


def leave_file(path: Path, host: str) -> Path:
    """Leave the partial file of a killed process."""
    workplace = path.with_name(f".{path.name}.partial-{host}-1")
    workplace.mkdir()
    (workplace / "new").write_text("half")
    return workplace


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, capsys):
    leave_file(tmp_path / "a", socket.gethostname())
    other = leave_file(tmp_path / "a", "elsewhere")
    write_file(tmp_path / "a", "whole")
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "a"]
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert capsys.readouterr().err == ""


def test_a_writer_that_is_about_to_lock_is_left_alone(tmp_path):
    beginning = tmp_path / f".a.partial-{socket.gethostname()}-1"
    beginning.mkdir()
    write_file(tmp_path / "a", "whole")
    assert beginning.is_dir()


@pytest.mark.parametrize("problem", [None, ValueError, KeyboardInterrupt])
def test_a_large_file_appears_whole_or_not_at_all(problem, tmp_path):
    path = tmp_path / "below" / "file"
    with nullcontext() if problem is None else pytest.raises(problem), new_file(path) as new:
        new.write_text("new")
        if problem:
            raise problem
    assert [left.read_text() for left in path.parent.iterdir()] == ([] if problem else ["new"])
