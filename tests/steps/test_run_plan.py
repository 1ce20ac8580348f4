"""One engine for all plans, with small commands and functions as steps."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.small_plans import calls, chain, is_alive, python, start, step, tree, wait_for
from support.waiting import wait_until

from nemo_longpo.errors import InputError
from nemo_longpo.steps import Step, read_records, run_steps


def test_steps_run_in_order_and_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = run_steps(chain(tmp_path, seed=0), tmp_path)
    assert (tmp_path / "c").read_text() == "abc"
    assert list(records) == ["a", "b", "c"]
    assert records["a"].settings == {"seed": 0}
    written = tree(tmp_path)
    capsys.readouterr()
    assert run_steps(chain(tmp_path, seed=0), tmp_path) == records
    assert tree(tmp_path) == written
    said = capsys.readouterr()
    assert said.out == ""
    assert "[ 2/3] b         make b: already done" in said.err


def test_added_step_runs_alone(tmp_path: Path) -> None:
    run_steps(chain(tmp_path), tmp_path)
    report = run_steps([*chain(tmp_path), Step(name="d", title="count", function=lambda: {"steps": 3})], tmp_path)
    assert calls(tmp_path) == "abc"
    assert report["d"].report == {"steps": 3}
    assert json.loads((tmp_path / "steps.json").read_text())["steps"]["d"]["report"] == {"steps": 3}


def test_missing_output_is_made_again(tmp_path: Path) -> None:
    run_steps(chain(tmp_path), tmp_path)
    (tmp_path / "c").unlink()
    run_steps(chain(tmp_path), tmp_path)
    assert calls(tmp_path) == "abcc"


def test_a_command_that_ends_before_its_work_is_done_is_not_done(tmp_path: Path) -> None:
    def confirm() -> None:
        if calls(tmp_path) == "ab":
            raise InputError("half of it is missing")

    first, second, third = chain(tmp_path)
    plan = [first, replace(second, confirm=confirm), third]
    with pytest.raises(InputError, match="half of it is missing"):
        run_steps(plan, tmp_path)
    assert read_records(tmp_path)["b"].seconds is None
    run_steps(plan, tmp_path)
    assert calls(tmp_path) == "abbc"


def test_redo_makes_a_step_and_its_readers_again(tmp_path: Path) -> None:
    plan = [*chain(tmp_path, seed=0), step(tmp_path, "d")]
    run_steps(plan, tmp_path)
    plan[0] = chain(tmp_path, seed=1)[0]
    assert run_steps(plan, tmp_path, redo=["a"])["a"].settings == {"seed": 1}
    assert calls(tmp_path) == "abcdabc"
    run_steps(plan, tmp_path, redo=["c"])
    assert calls(tmp_path) == "abcdabcc"
    run_steps(plan, tmp_path, redo=["c", "d"])
    assert calls(tmp_path) == "abcdabcccd"
    with pytest.raises(InputError, match="--redo e: there is no such step; the steps are a, b, c, d"):
        run_steps(plan, tmp_path, redo=["e"])


def test_redo_removes_outputs_before_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    code = f"import os; os.makedirs({str(folder)!r}); open({str(folder / 'x')!r}, 'w')"
    for _ in range(2):  # makedirs fails where the folder still is
        run_steps([python("made", code, outputs=(folder,))], tmp_path, redo=["made"])


def test_redo_that_is_stopped_leaves_nothing_half_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made"
    plan = [python("made", f"import os; os.makedirs({str(folder)!r}); print(1)", outputs=(folder,))]
    run_steps(plan, tmp_path)
    remove = shutil.rmtree

    def stopped(path: Path, ignore_errors: bool = False) -> None:
        if path.name == ".made.removed" and not ignore_errors:
            raise KeyboardInterrupt
        remove(path, ignore_errors)

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_steps(plan, tmp_path, redo=["made"])
    assert not folder.exists()
    assert json.loads((tmp_path / "steps.json").read_text())["steps"] == {}
    run_steps(plan, tmp_path)
    run_steps(plan, tmp_path, redo=["made"])
    assert not list(tmp_path.glob(".made*"))


def test_step_that_writes_nothing_is_not_done(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=r"step 'idle' has ended and not written .*file"):
            run_steps([python("idle", "", outputs=(tmp_path / "file",))], tmp_path)


def test_second_start_is_refused_and_killed_run_continues(tmp_path: Path) -> None:
    """A command outlives a run that was killed. The output is guarded until it has ended."""
    body = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    run = start(tmp_path, body)
    wait_for(tmp_path / "pid")
    child = wait_until(lambda: (record := read_records(tmp_path).get("slow")) and record.process)
    again = python("slow", f"open({str(tmp_path / 'slow')!r}, 'w')", outputs=(tmp_path / "slow",))
    for killed in (False, True):
        if killed:
            run.kill()
            run.communicate()
        with pytest.raises(InputError, match=f"a run is at work here, step 'slow' in process {child}; wait"):
            run_steps([again], tmp_path)
    os.kill(child, signal.SIGKILL)
    while is_alive(child):
        time.sleep(0.02)
    assert run_steps([again], tmp_path)["slow"].seconds is not None
