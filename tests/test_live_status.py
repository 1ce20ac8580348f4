"""Long work says how far it has come, never fails by it, and never says more than it knows."""

import errno
import json
import os
import subprocess
import sys

import pytest
from support.waiting import wait_until

from nemo_longpo import live_status
from nemo_longpo.live_status import DONE, FAILED, RUNNING, STOPPED, StatusFile, read_status


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when a test says so."""
    now = {"seconds": 1000.0}
    monkeypatch.setattr(live_status.time, "monotonic", lambda: now["seconds"])
    monkeypatch.setattr(live_status.time, "time", lambda: 1.7e9 + now["seconds"])

    def wait(seconds):
        now["seconds"] += seconds

    return wait


def test_rate_and_time_left_are_those_since_the_work_began(tmp_path, clock):
    with StatusFile(tmp_path, "training longpo", done=100, total=200, unit="step") as status:
        clock(30)  # compiling
        status.begin()
        clock(20)
        status.update(done=110, said="loss 2.3", metrics={"loss": 2.3, "mfu": float("nan")})
        found = read_status(tmp_path)
        assert (found.state, found.rate, found.seconds_left) == (RUNNING, 0.5, 180)
        assert found.updated - found.started == 50
        assert found.line() == "110 of 200 steps, 2.0 s per step, 3 min left, loss 2.3"
        assert found.metrics == {"loss": 2.3, "mfu": "nan"}
        assert (found.pid, found.is_gone) == (os.getpid(), False)
        raw = json.loads((tmp_path / "status.json").read_text(), parse_constant=pytest.fail)
        assert raw["done"] == 110
    assert read_status(tmp_path).state == DONE
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_it_is_written_once_a_second(tmp_path, clock, monkeypatch):
    written = []
    monkeypatch.setattr(live_status.atomic, "write_for_display", lambda path, content: written.append(content))
    status = StatusFile(tmp_path, "respond", total=1000, unit="document")
    for done in range(100):
        clock(0.1)
        status.update(done=done)
    assert 10 <= len(written) <= 11
    status.end()
    assert json.loads(written[-1])["state"] == DONE


@pytest.mark.parametrize("fault", ["no folder", "full", "read-only"])
def test_what_cannot_be_written_does_not_end_the_work(tmp_path, monkeypatch, fault):
    output = tmp_path / "output"
    if fault != "no folder":
        output.mkdir()
        number = {"full": errno.ENOSPC, "read-only": errno.EROFS}[fault]

        def fail(path, *args, **named):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(type(output), "write_text", fail)
    with StatusFile(output, "training", total=2, unit="step") as status:
        status.update(done=1, now=True)
    assert read_status(output) is None
    assert not output.exists() or not list(output.iterdir())


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (KeyboardInterrupt(), STOPPED, "newest"),
        (SystemExit(143), STOPPED, "newest"),
        (ValueError("no answer from http://me:secret@host/v1"), FAILED, "no answer from http://***@host/v1"),
        (ZeroDivisionError("x"), FAILED, "ZeroDivisionError: x"),
    ],
)
def test_how_work_ended(tmp_path, error, state, said):
    def work():
        with StatusFile(tmp_path, "respond") as status:
            status.update(said="newest")
            raise error

    with pytest.raises(type(error)):
        work()
    found = read_status(tmp_path)
    assert (found.state, found.said) == (state, said)


def test_an_output_that_appears_whole_has_none_beside_it_at_the_end(tmp_path):
    output = tmp_path / "shards"
    with StatusFile(output, "pack", whole=True, total=2, unit="document") as status:
        status.update(done=1, now=True)
        assert read_status(output).done == 1
        assert not output.exists()
    assert read_status(output) is None
    assert not list(tmp_path.iterdir())


def other(path, **changes):
    """Write a status as another process would."""
    told = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps(told | changes))


def test_one_of_several_processes_writes(tmp_path, clock):
    status = StatusFile(tmp_path, "respond", total=10, unit="document")
    living = os.getppid()
    now = read_status(tmp_path).updated
    other(tmp_path, pid=living, done=7)
    clock(5)
    status.update(done=3)
    assert read_status(tmp_path).done == 7, "that one is at work"
    status.end(KeyboardInterrupt())
    assert (read_status(tmp_path).state, read_status(tmp_path).done) == (RUNNING, 7)
    for silent in (
        {"pid": 2**22 + 1},
        {"updated": now - 20},
        {"state": STOPPED},
        {"host": "other", "updated": now - 20},
    ):
        other(tmp_path, **{"pid": living, "state": RUNNING, "updated": now + 5, **silent})
        status.update(done=4, now=True)
        assert read_status(tmp_path).done == 4, silent


def test_unfinished_work_is_left_to_others(tmp_path):
    with StatusFile(tmp_path, "respond") as status:
        status.end(unfinished=True)
        assert read_status(tmp_path).state == RUNNING


def test_a_process_that_is_gone(tmp_path):
    """Also one that is dead and that nobody has waited for; one in another container may live."""
    code = f"""
import pathlib, time
from nemo_longpo.live_status import StatusFile
StatusFile(pathlib.Path({str(tmp_path)!r}), "training")
time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", code])
    assert not wait_until(lambda: read_status(tmp_path)).is_gone
    child.kill()
    wait_until(lambda: read_status(tmp_path).is_gone)
    child.wait()
    found = read_status(tmp_path)
    assert found.is_gone
    for elsewhere in ({"host": "other"}, {"processes": "pid:[1]"}, {"state": DONE}):
        other(tmp_path, **{"host": found.host, "processes": found.processes, "state": RUNNING, **elsewhere})
        assert not read_status(tmp_path).is_gone, elsewhere


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"version": 1}', b'{"version": 2, "what": "x"}', b'{"version": 1, "what": 3}'],
)
def test_damage_is_no_status(tmp_path, content):
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path) is None
    StatusFile(tmp_path, "again")
    assert read_status(tmp_path).what == "again"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.25, "0.2 s"), (9.96, "10.0 s"), (119.4, "119 s"), (119.6, "120 s"), (7140, "119 min"), (7260, "2 h 01 min")],
)
def test_durations(seconds, said):
    assert live_status.duration(seconds) == said
    assert live_status.duration(52 * 3600) == "2 days 4 h"
