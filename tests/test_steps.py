"""One engine for all plans, with small commands and functions as steps."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_longpo.errors import ERROR_MARK, InputError
from nemo_longpo.steps import Record, Step, add_plan_options, run_steps, show_plan


def step(folder: Path, name: str, *inputs: str, **changes: object) -> Step:
    """Return a step that copies its inputs and its name into one file, and notes in `calls` that it ran."""
    code = (
        "import sys; name, calls, *inputs = sys.argv[1:]; open(calls, 'a').write(name[-1]); "
        "open(name, 'w').write(''.join(open(path).read() for path in inputs) + name[-1])"
    )
    paths = [str(folder / item) for item in inputs]
    command = (sys.executable, "-S", "-c", code, str(folder / name), str(folder / "calls"), *paths)
    fields = {"title": f"make {name}", "command": command, "outputs": (folder / name,)}
    return Step(**{"name": name, "inputs": tuple(map(Path, paths)), **fields, **changes})  # type: ignore[arg-type]


def chain(folder: Path, **settings: object) -> list[Step]:
    return [step(folder, "a", settings=settings), step(folder, "b", "a"), step(folder, "c", "b")]


def calls(folder: Path) -> str:
    return (folder / "calls").read_text()


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def python(name: str, code: str, **changes: object) -> Step:
    command = (sys.executable, "-c", code)
    return Step(**{"name": name, "title": "run", "command": command, **changes})  # type: ignore[arg-type]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def start(tmp_path: Path, body: str) -> "subprocess.Popen[str]":
    """Run in another process a plan of one step `slow`, whose command runs `body`."""
    code = f"""
from pathlib import Path
import signal, sys
from nemo_longpo.steps import Step, run_steps
signal.signal(signal.SIGINT, signal.default_int_handler)
out = Path({str(tmp_path)!r})
command = (sys.executable, "-c", {body!r})
try:
    run_steps([Step(name="slow", title="wait", command=command, outputs=(out / "slow",))], out)
except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


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


def test_finished_step_whose_input_is_made_again_is_refused(tmp_path: Path) -> None:
    run_steps(chain(tmp_path), tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(InputError, match="step 'b' is done and has read what step 'a' would make again; give --redo a"):
        run_steps(chain(tmp_path), tmp_path)
    assert calls(tmp_path) == "abc"


def test_changed_settings_are_refused_by_name(tmp_path: Path) -> None:
    run_steps(chain(tmp_path, tokens=1024, seed=0, kept=[1]), tmp_path)
    message = r"step 'a' was run with tokens=1024 \(now 512\), seed=0 \(now unset\); give the old .* or --redo a"
    with pytest.raises(InputError, match=message):
        run_steps(chain(tmp_path, tokens=512, kept=(1,)), tmp_path)
    assert calls(tmp_path) == "abc"


def test_unfinished_step_is_held_to_its_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run_steps([python("bad", "raise SystemExit(1)", settings={"rate": 1})], tmp_path)
    with pytest.raises(InputError, match=r"'bad' was run with rate=1 \(now 2\)"):
        run_steps([python("bad", "", settings={"rate": 2})], tmp_path)
    assert run_steps([python("bad", "", settings={"rate": 1})], tmp_path)["bad"].seconds is not None


def test_redo_makes_a_step_and_its_readers_again(tmp_path: Path) -> None:
    plan = [*chain(tmp_path, seed=0), step(tmp_path, "d")]
    run_steps(plan, tmp_path)
    plan[0] = chain(tmp_path, seed=1)[0]
    assert run_steps(plan, tmp_path, redo="a")["a"].settings == {"seed": 1}
    assert calls(tmp_path) == "abcdabc"
    run_steps(plan, tmp_path, redo="c")
    assert calls(tmp_path) == "abcdabcc"
    with pytest.raises(InputError, match="--redo e: there is no such step; the steps are a, b, c, d"):
        run_steps(plan, tmp_path, redo="e")


def test_redo_removes_outputs_before_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    code = f"import os; os.makedirs({str(folder)!r}); open({str(folder / 'x')!r}, 'w')"
    for _ in range(2):  # makedirs fails where the folder still is
        run_steps([python("made", code, outputs=(folder,))], tmp_path, redo="made")


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
            run_steps(plan, tmp_path, redo="made")
    assert not folder.exists()
    assert json.loads((tmp_path / "steps.json").read_text())["steps"] == {}
    run_steps(plan, tmp_path)
    run_steps(plan, tmp_path, redo="made")
    assert not list(tmp_path.glob(".made*"))


def test_dry_run_says_what_would_run_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    output.mkdir()
    plan = chain(output, seed=0)
    run_steps(plan[:1], output)
    written = tree(tmp_path)
    capsys.readouterr()
    plan[1] = step(output, "b", "a", env={"THREADS": "1"})
    show_plan(plan, output)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0:2] == ["a: done", "b: to run"]
    assert lines[2].startswith(f"  THREADS=1 {sys.executable} -S -c 'import sys; ")
    show_plan(chain(output, seed=1), output, as_json=True)
    first = json.loads(capsys.readouterr().out)["plan"][0]
    assert (first["state"], first["commands"]) == ("refused", [])
    assert "seed=0 (now 1)" in first["why"]
    show_plan(plan, tmp_path / "new")
    assert tree(tmp_path) == written


def test_plan_options() -> None:
    parser = argparse.ArgumentParser()
    add_plan_options(parser)
    assert vars(parser.parse_args(["--dry-run", "--redo", "a"])) == {"dry_run": True, "redo": "a"}


def test_step_with_a_check_is_asked(tmp_path: Path) -> None:
    """Also without `steps.json`: it knows its parts, and what they were made from."""
    parts = tmp_path / "parts"

    def check() -> dict[str, int]:
        if parts.exists() and parts.read_text() == "other":
            raise InputError("the parts were made from something else")
        return {"parts": 1} if parts.exists() else {}

    checked = Step(name="x", title="x", function=lambda: pytest.fail("was run"), outputs=(parts,), check=check)
    parts.write_text("own")
    assert run_steps([checked], tmp_path)["x"].report == {"parts": 1}
    assert not (tmp_path / "steps.json").exists()
    parts.write_text("other")
    with pytest.raises(InputError, match="step 'x': the parts were made from something else"):
        run_steps([checked], tmp_path)


def test_error_sentence_of_a_command_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"print('a bar'); print({ERROR_MARK!r} + 'data.yaml is empty'); raise SystemExit(2)"
    with pytest.raises(InputError) as raised:
        run_steps([python("bad", code), step(tmp_path, "never")], tmp_path)
    assert str(raised.value) == f"step 'bad': data.yaml is empty (its log: {tmp_path / 'logs' / 'bad.log'})"
    assert "data.yaml" not in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_failure_without_a_sentence_shows_the_end_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="step 'bad' failed with exit status 3; the lines above are the last ones of"):
        run_steps([python("bad", "print('no such thing'); raise SystemExit(3)")], tmp_path)
    assert "no such thing" in capsys.readouterr().err
    with pytest.raises(InputError, match="/none cannot be run: No such file"):
        run_steps([Step(name="none", title="", command=("/none",))], tmp_path)


def test_step_that_writes_nothing_is_not_done(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=r"step 'idle' has ended and not written .*file"):
            run_steps([python("idle", "", outputs=(tmp_path / "file",))], tmp_path)


def test_records_of_another_form_are_continued(tmp_path: Path) -> None:
    plan = chain(tmp_path, seed=0)
    (tmp_path / "a").write_text("A")
    known = {"a": Record(settings={"seed": 0}, seconds=5.0)}
    assert run_steps(plan, tmp_path, known=known)["a"].seconds == 5
    assert (tmp_path / "c").read_text() == "Abc"
    with pytest.raises(InputError, match=r"seed=0 \(now 1\)"):
        run_steps(chain(tmp_path, seed=1), tmp_path)


def test_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text("{")
    with pytest.raises(InputError, match=r"steps\.json is not readable JSON"):
        run_steps(chain(tmp_path), tmp_path)
    (tmp_path / "steps.json").write_text('{"version": 1, "steps": {"a": {"settings": 3}}}')
    with pytest.raises(InputError, match=r"steps.json: field 'steps\.a\.process' is missing"):
        run_steps(chain(tmp_path), tmp_path)


def test_second_start_is_refused_and_killed_run_continues(tmp_path: Path) -> None:
    """A command outlives a run that was killed. The output is guarded until it has ended."""
    body = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    run = start(tmp_path, body)
    wait_for(tmp_path / "pid")
    time.sleep(0.3)
    child = int((tmp_path / "pid").read_text())
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_that_a_step_started(tmp_path: Path, number: signal.Signals) -> None:
    """Also what a command has started itself, and what does not listen."""
    inner = "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    body = (
        f"import subprocess, sys, time; inner = subprocess.Popen([sys.executable, '-c', {inner!r}]); time.sleep(0.5); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(inner.pid)); time.sleep(60)"
    )
    run = start(tmp_path, body)
    wait_for(tmp_path / "pid")
    time.sleep(0.3)
    run.send_signal(number)
    _, said = run.communicate(timeout=30)
    assert "Traceback" not in said
    assert said.strip() == ("stopped" if number == signal.SIGINT else "")
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "slow").exists()
    assert json.loads((tmp_path / "steps.json").read_text())["steps"]["slow"]["seconds"] is None
