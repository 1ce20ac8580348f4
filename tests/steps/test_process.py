"""Commands that fail, and commands that are stopped."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from support.small_plans import is_alive, python, start, step, wait_for

from nemo_longpo.errors import ERROR_MARK, InputError
from nemo_longpo.steps import Step, run_steps


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


def test_plan_inside_of_a_step_shows_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each once, when it has finished; what else is in the log stays there."""
    body = f"""
import sys, time
from pathlib import Path
from nemo_longpo.steps import Step, run_steps
def cut():
    print("\\rcut:  50%|#####     | 1/2\\rcut: 100%|##########| 2/2", file=sys.stderr)
run_steps([Step(name="cut", title="in parts", function=cut)], Path({str(tmp_path / "inner")!r}))
time.sleep(0.7)
run_steps([Step(name="cut", title="", function=cut), Step(name="sew", title="up", function=cut)], Path("inner"))
"""
    run_steps([python("cloth", body)], tmp_path)
    *inner, last = capsys.readouterr().err.splitlines()
    assert inner == ["  [ 1/1] cut       in parts: 0 s", "  [ 1/2] cut       : 0 s", "  [ 2/2] sew       up: 0 s"]
    assert re.fullmatch(r"\[ 1/1\] cloth     run: \d+ s", last)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_that_a_step_started(tmp_path: Path, number: signal.Signals) -> None:
    """Also what a command has started itself, and what does not listen."""
    inner = "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    body = (
        f"import subprocess, sys, time; inner = subprocess.Popen([sys.executable, '-c', {inner!r}]); time.sleep(0.5); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(inner.pid)); time.sleep(600)"
    )
    run = start(tmp_path, body)
    wait_for(tmp_path / "pid")
    time.sleep(0.3)
    run.send_signal(number)
    _, said = run.communicate()
    assert "Traceback" not in said
    assert said.strip() == ("stopped" if number == signal.SIGINT else "")
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "slow").exists()
    assert json.loads((tmp_path / "steps.json").read_text())["steps"]["slow"]["seconds"] is None
