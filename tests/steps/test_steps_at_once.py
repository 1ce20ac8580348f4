"""Several steps of a plan at the same time: their order, one that fails, and a run that is stopped."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support.small_plans import is_alive, python, step, wait_for
from support.waiting import PATIENCE_SECONDS

from nemo_longpo.errors import InputError
from nemo_longpo.steps import Step, read_records, run_steps


def meeting(name: str, place: threading.Barrier) -> Step:
    return Step(name=name, title="meet", function=lambda: {"place": place.wait(PATIENCE_SECONDS)})


def test_independent_steps_meet(tmp_path: Path) -> None:
    together = threading.Barrier(2)
    assert set(run_steps([meeting("a", together), meeting("b", together)], tmp_path, jobs=2)) == {"a", "b"}


def test_no_more_than_so_many_at_a_time(tmp_path: Path) -> None:
    running: list[int] = []
    most: list[int] = []
    both = threading.Barrier(2)

    def work() -> None:
        both.wait(PATIENCE_SECONDS)
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()

    run_steps([Step(name=str(i), title="", function=work) for i in range(6)], tmp_path, jobs=2)
    assert max(most) == 2


def test_a_step_waits_for_what_it_reads(tmp_path: Path) -> None:
    """Also for what is read through a folder, and in a plan that is begun anew."""
    slow = python("a", f"import time; time.sleep(0.3); open({str(tmp_path / 'a')!r}, 'w').write('a')")
    plan = [
        Step(name="a", title="", command=slow.command, outputs=(tmp_path / "a",)),
        step(tmp_path, "b", "a"),
        step(tmp_path, "c"),
        step(tmp_path, "d", "b", "c"),
    ]
    records = run_steps(plan, tmp_path, jobs=3)
    assert (tmp_path / "d").read_text() == "abcd"
    (tmp_path / "d").unlink()
    assert run_steps(plan, tmp_path, jobs=3)["a"] == records["a"]
    assert (tmp_path / "d").read_text() == "abcd"


def test_others_go_on_when_one_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = python("a", "raise SystemExit(3)", outputs=(tmp_path / "a",))
    plan = [bad, step(tmp_path, "b", "a"), step(tmp_path, "c"), step(tmp_path, "d", "c"), step(tmp_path, "e", "b")]
    with pytest.raises(InputError, match="step 'a' failed with exit status 3"):
        run_steps(plan, tmp_path, jobs=4)
    assert "step 'e'" not in capsys.readouterr().err
    assert not (tmp_path / "logs" / "e.log").exists()
    assert (tmp_path / "d").read_text() == "cd"
    assert {name for name, record in read_records(tmp_path).items() if record.seconds is not None} == {"c", "d"}
    plan[0] = step(tmp_path, "a")
    run_steps(plan, tmp_path, jobs=2)
    assert (tmp_path / "e").read_text() == "abe"


def test_a_stop_ends_every_command(tmp_path: Path) -> None:
    """What was done stays, and the same plan continues."""
    pids = [tmp_path / name for name in ("pid-a", "pid-b")]
    plan = [
        python(path.name, f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
        for path in pids
    ]

    def ring() -> None:
        for path in pids:
            wait_for(path)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=ring)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        run_steps([step(tmp_path, "c"), *plan], tmp_path, jobs=3)
    waiting.join()
    assert not any(is_alive(int(path.read_text())) for path in pids)
    records = read_records(tmp_path)
    assert [records[name].seconds is None for name in ("c", "pid-a", "pid-b")] == [False, True, True]
