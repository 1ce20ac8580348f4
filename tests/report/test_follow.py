"""The view of work: the step at work inside of its plans; silence and death are said; it ends when the work does."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading

import pytest
from support.small_plans import python
from support.waiting import wait_until

from nemo_longpo import cli, live_status
from nemo_longpo.live_status import StatusFile
from nemo_longpo.report import follow
from nemo_longpo.steps import Step, run_steps


@pytest.fixture
def nested(tmp_path):
    """A plan whose second step is a plan whose step is training."""
    plan, data, training = (tmp_path / "evolved", tmp_path / "evolved" / "data", tmp_path / "evolved" / "data" / "run")
    training.mkdir(parents=True)
    outer = StatusFile(plan, "evolved", total=7, done=1, unit="step", timed=False)
    outer.update(doing="data-1: make pairs", inside=["start", "data"], now=True)
    inner = StatusFile(data, "data", total=6, done=2, unit="step", timed=False)
    inner.update(doing="respond: answer twice", inside=["run"], now=True)
    StatusFile(training, "respond", total=200, done=50, unit="document").update(done=50, said="9 tokens/s", now=True)
    return plan


def change(folder, **changes):
    path = folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_step_at_work_stands_inside_of_its_plans(nested):
    work = follow.look(nested)
    now = work.status.updated
    assert [line.split("for")[0] for line in follow.drawn(work, now)] == [
        "evolved: at work ",
        "  [===                     ]  14%  1 of 7 steps",
        "  data-1: make pairs",
        "  data: at work ",
        "    [========                ]  33%  2 of 6 steps",
        "    respond: answer twice",
        "    respond: at work ",
        "      [======                  ]  25%  50 of 200 documents",
        "      9 tokens/s",
    ]
    assert follow.line(work, now).startswith(
        "evolved: data-1: make pairs, 1 of 7 steps > data: respond: answer twice, 2 "
    )
    later = follow.drawn(work, work.status.started + 180)
    assert later[0] == "evolved: at work for 3 min", "also where nothing was said for so long"
    change(nested / "data" / "run", updated=work.status.started - 1)
    assert follow.look(nested).steps[0].steps == (), "what it said before the plan was started is old"


def test_steps_that_run_at_the_same_time_are_all_shown(tmp_path):
    plan = [
        python(name, f"import time; time.sleep(600 * (not {name == 'c'}))", outputs=(tmp_path / name / "file",))
        for name in "abc"
    ]
    for name in "ab":
        (tmp_path / name).mkdir()
    seen = []

    def see():
        for name in "ab":
            StatusFile(tmp_path / name, f"work {name}", total=2, unit="step")
        seen.append(wait_until(lambda: (work := follow.look(tmp_path)) and len(work.steps) == 2 and work))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=see)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_steps(plan, tmp_path, jobs=2)
    thread.join()
    (work,) = seen
    assert work.status.doing == "a, b"
    lines = "\n".join(follow.drawn(work, work.status.updated))
    assert "  work a: at work" in lines
    assert "  work b: at work" in lines
    assert live_status.read_status(tmp_path).state == "stopped"


def test_silence_is_said_when_it_is_long_for_the_work(nested):
    work = follow.look(nested)
    newest = work.newest.updated
    assert work.silence(newest + 50) is None
    assert "nothing was updated for 70 s; look at process" in follow.drawn(work, newest + 70)[-1]
    change(nested / "data" / "run", rate=0.01)  # 100 s a document
    slow = follow.look(nested)
    assert slow.silence(newest + 390) is None
    assert slow.silence(newest + 410) == pytest.approx(410, abs=1)


def gone(folder):
    change(folder, pid=2**22 + 1)


def test_it_ends_when_the_work_ends(nested, capsys, monkeypatch):
    """A step that has outlived its plan is followed to its end."""
    looks = []

    def wait(_):
        looks.append(len(looks))
        if len(looks) == 2:
            gone(nested)
            gone(nested / "data")
        if len(looks) == 4:
            gone(nested / "data" / "run")

    assert follow.follow([nested], wait) == 1
    assert looks == [0, 1, 2, 3]
    said = capsys.readouterr().out.splitlines()
    assert "is gone without a word" in said[-1]
    assert len(said) == 3, "a line for each change"

    StatusFile(nested, "again").end()
    assert follow.follow([nested], wait) == 0
    assert "again: done after" in capsys.readouterr().out
    StatusFile(nested, "again").end(ValueError("no room"))
    assert follow.follow([nested], wait) == 1
    assert "again: failed after 0.0 s, no room" in capsys.readouterr().out


def test_shards_that_are_there_are_done(tmp_path, capsys):
    output = tmp_path / "shards"
    status = StatusFile(output, "pack", whole=True, total=2, unit="document")

    def wait(_):
        output.mkdir()
        status.end()

    assert follow.follow([output], wait) == 0
    assert "pack: done" in capsys.readouterr().out


def test_hostile_text_is_not_obeyed(tmp_path, capsys):
    StatusFile(tmp_path, "x")
    change(tmp_path, what="a\x1b[2J\n", said="b\r\u202e", doing="c\x07", host="\x9b", total=3, unit="\x1b", updated=1)
    assert follow.follow([tmp_path], lambda _: change(tmp_path, state="done\x1b")) == 1
    out = capsys.readouterr().out
    assert r"a\x1b[2J\n" in out
    assert not set("\x1b\r\x07\u202e\x9b") & set(out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--follow"], "does not exist; give the output of work that has been started"),
        (["empty", "--follow"], "holds no status.json that can be read; give a training run"),
        (["empty", "--follow", "--output", "x"], "give either --output DIR, for a page, or --follow"),
        (["empty"], "give either --output DIR, for a page, or --follow"),
    ],
)
def test_wrong_words_are_one_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_plan_says_which_step_it_is_at(tmp_path):
    """Its own line is that of the step's status, or else the bar in its log."""
    seen = []
    work, other = tmp_path / "work", tmp_path / "other"

    def note():
        seen.append(live_status.read_status(tmp_path))

    def seen_from_outside(said):
        return f"while {said!r} not in pathlib.Path({str(tmp_path / 'status.json')!r}).read_text(): time.sleep(0.01)"

    say = (
        "import pathlib, time\nfrom nemo_longpo.live_status import StatusFile\n"
        f"out = pathlib.Path({str(work)!r})\nout.mkdir()\n"
        "status = StatusFile(out, 'respond', total=4, unit='document')\n"
        f"status.update(done=3, said='fast', now=True)\n{seen_from_outside('left, fast')}"
    )
    bar = f"import pathlib, time\nprint(' 75%|###  | 3/4', flush=True)\n{seen_from_outside('75%')}\n"
    bar += f"pathlib.Path({str(other)!r}).mkdir()"
    plan = [
        Step(name="first", title="look", function=note),
        python("say", say, outputs=(work,)),
        Step(name="second", title="look", function=note),
    ]
    lines = []
    update = StatusFile.update

    def updated(self, **changes):
        update(self, **changes)
        lines.append(self._status.said)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StatusFile, "update", updated)
        run_steps([*plan, python("bar", bar, outputs=(other,))], tmp_path)
    assert [(status.done, status.total, status.doing) for status in seen] == [
        (0, 4, "first: look"),
        (2, 4, "second: look"),
    ]
    assert any(line.endswith("left, fast") and line.startswith("3 of 4 documents") for line in lines)
    assert "75%|###  | 3/4" in lines
    end = live_status.read_status(tmp_path)
    assert (end.state, end.done, end.said, end.inside) == ("done", 4, "", [])


def test_a_plan_that_is_done_writes_nothing(tmp_path):
    plan = [Step(name="first", title="look", function=lambda: {"seen": 1})]
    run_steps(plan, tmp_path)
    assert live_status.read_status(tmp_path).state == "done"
    (tmp_path / "status.json").unlink()
    run_steps(plan, tmp_path)
    assert not (tmp_path / "status.json").exists()


@pytest.mark.slow
def test_on_a_terminal_it_is_redrawn_and_ctrl_c_leaves_the_work_alone(nested):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "nemo_longpo.cli", "report", str(nested), "--follow"]
    view = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "40", "LINES": "6"})
    os.close(theirs)
    said = b""
    while b"\x1b[5A" not in said:  # drawn again
        said += os.read(ours, 65536)
    view.send_signal(signal.SIGINT)
    assert view.wait() == 130
    while True:
        try:
            said += os.read(ours, 65536)
        except OSError:
            break
    text = said.decode()
    assert text.count("\x1b[5A") >= 1, "six rows hold five lines"
    frame = text.split("\x1b[J")[0]
    assert "  [===" in frame
    assert all(len(line.replace("\r", "").replace("\x1b[K", "")) < 40 for line in frame.splitlines())
    assert "the same command starts" not in text
    assert live_status.read_status(nested).state == "running"
