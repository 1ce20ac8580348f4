"""Which steps are done, must run or are refused, and the output of `--dry-run`."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from support.small_plans import calls, chain, python, step, tree

from nemo_longpo.errors import InputError
from nemo_longpo.steps import Record, Step, add_plan_options, run_steps, show_plan


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


@pytest.mark.parametrize("name", ["a", "c"])  # "c" reads what is still to be made
def test_what_no_step_has_written_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"/{name} is there, and no step '{name}' is recorded that wrote it; move it"):
        run_steps(chain(tmp_path), tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


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
    assert vars(parser.parse_args(["--dry-run", "--redo", "a", "--redo", "b"])) == {"dry_run": True, "redo": ["a", "b"]}
