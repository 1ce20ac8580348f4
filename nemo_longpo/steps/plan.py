"""What a step is, what is recorded of it, and which steps of a plan are done, must run or are refused."""

import argparse
import json
import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_longpo import atomic, terminal, typed_fields
from nemo_longpo.errors import InputError

STATE_NAME = "steps.json"
DONE, TO_RUN, TO_REDO, REFUSED = "done", "to run", "to redo", "refused"

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One entry of a plan: a `command`, or a `function` that returns a report or None.

    A command runs in the folder of its log, `logs/NAME.log`, so its paths are absolute. `lines` are the command lines
    that a function starts, for `--dry-run`. `settings` decide what the outputs become. A step is done when it has run
    and its outputs exist, refused if one exists that it was not started for; a step that knows better has a `check`.
    It returns the report of a finished step, {} if something is missing, and raises InputError if the outputs were made
    from something else. A command may end well before its work is done; `confirm` then raises InputError, and the step
    is not done.
    """

    name: str
    title: str
    command: tuple[str, ...] = ()
    function: Callable[[], Report | None] | None = None
    lines: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[], Report] | None = None
    confirm: Callable[[], None] | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def reads(self, path: Path) -> bool:
        return any(path == source or path in source.parents for source in self.inputs)

    def statuses(self, output: Path) -> list[str]:
        """Where the step may say how far it has come, seen from the plan's output: in an output, or beside a file."""
        folders = [folder for path in self.outputs for folder in (path.absolute(), path.absolute().parent)]
        return [os.path.relpath(folder, output) for folder in folders if folder != output.absolute()]

    def command_lines(self) -> list[str]:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return [*self.lines, " ".join([*variables, shlex.join(self.command)])] if self.command else list(self.lines)

    def recorded_settings(self) -> dict[str, Any]:
        """The settings as they come back from a file."""
        settings: dict[str, Any] = json.loads(json.dumps(dict(self.settings)))
        return settings


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a step that was started; `seconds` is None until it has finished."""

    settings: dict[str, Any]
    seconds: typed_fields.Number | None = None
    report: dict[str, Any] = field(default_factory=dict)
    process: typed_fields.Count = 0


Records = dict[str, Record]


@dataclass(frozen=True)
class _State:
    steps: dict[str, Record]


def read_records(output: Path, known: Records | None = None) -> Records:
    """Return what `steps.json` in `output` holds, or `known` where there is no such file."""
    path = output / STATE_NAME
    if not path.exists():
        return dict(known or {})
    advice = "remove it with all that lies beside it, or give another output"
    return dict(typed_fields.read_versioned(path, _State, 1, advice).steps)


def write_records(output: Path, records: Records) -> None:
    content = {"version": 1, "steps": {name: asdict(record) for name, record in records.items()}}
    atomic.write_file(output / STATE_NAME, json.dumps(content, indent=1))


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What becomes of a step: `why` it is refused, or the `report` of a check that found it done."""

    step: Step
    state: str  # DONE, TO_RUN, TO_REDO or REFUSED
    why: str = ""
    report: Report = field(default_factory=dict)


def judge(steps: Sequence[Step], records: Records, redo: Collection[str]) -> list[Turn]:
    """Say of each step whether it is done. Raises InputError if there is no step of a name in `redo`."""
    names = [step.name for step in steps]
    for unknown in sorted(set(redo) - set(names)):
        raise InputError(f"--redo {unknown}: there is no such step; the steps are {', '.join(names)}")
    turns: list[Turn] = []
    for step in steps:
        sources = [turn for turn in turns if turn.state != DONE and any(map(step.reads, turn.step.outputs))]
        turns.append(_judge_step(step, records.get(step.name), sources, redo, readers(steps, step)))
    return turns


def readers(steps: Sequence[Step], source: Step) -> list[str]:
    """Return the names of the steps that read what `source` writes, directly or not."""
    found = [source]
    for step in steps:
        if step not in found and any(step.reads(path) for other in found for path in other.outputs):
            found.append(step)
    return [step.name for step in found[1:]]


def _judge_step(
    step: Step, record: Record | None, sources: list[Turn], redo: Collection[str], read_by: Sequence[str]
) -> Turn:
    """Say whether one step is done; `sources` are the steps before it that are not and whose outputs it reads."""
    if step.name in redo or any(turn.state == TO_REDO for turn in sources):
        return Turn(step=step, state=TO_REDO)
    old, new = record.settings if record else {}, step.recorded_settings()
    changed = [name for name in {**old, **new} if old.get(name, "unset") != new.get(name, "unset")]
    if record and changed:
        changes = ", ".join(f"{name}={old.get(name, 'unset')} (now {new.get(name, 'unset')})" for name in changed)
        again = f", which also makes {', '.join(read_by)} again" if read_by else ""
        advice = f"give the old settings, another output, or --redo {step.name}{again}"
        return Turn(step=step, state=REFUSED, why=f"step {step.name!r} was run with {changes}; {advice}")
    finished = record is not None and record.seconds is not None
    if sources and step.check is None and finished:
        source = sources[0].step.name
        why = f"step {step.name!r} is done and has read what step {source!r} would make again; give --redo {source}"
        return Turn(step=step, state=REFUSED, why=f"{why} to make both again")
    if record is None and step.check is None and (found := [path for path in step.outputs if path.exists()]):
        why = f"{found[0]} is there, and no step {step.name!r} is recorded that wrote it"
        return Turn(step=step, state=REFUSED, why=f"{why}; move it away, or give another output")
    if sources:  # a step with a check of its own makes it when its turn has come and its input is whole
        return Turn(step=step, state=TO_RUN)
    if step.check is None:
        done = finished and all(path.exists() for path in step.outputs)
        return Turn(step=step, state=DONE if done else TO_RUN)
    try:
        report = step.check()
    except InputError as error:
        return Turn(step=step, state=REFUSED, why=f"step {step.name!r}: {error}")
    return Turn(step=step, state=DONE if report else TO_RUN, report=report)


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add `--dry-run` and `--redo` to a command that runs a plan."""
    parser.add_argument("--dry-run", action="store_true", help="say what is done and what would run, and do nothing")
    parser.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="STEP",
        help="make this step and those that read it again; may be given several times",
    )


def planned(
    steps: Sequence[Step], output: Path, *, redo: Collection[str] = (), known: Records | None = None
) -> list[dict[str, Any]]:
    """Return for each step its name, its state, why it is refused, and the command lines if it would run."""
    return [
        {
            "step": turn.step.name,
            "state": turn.state,
            "why": turn.why,
            "commands": turn.step.command_lines() if turn.state in (TO_RUN, TO_REDO) else [],
        }
        for turn in judge(steps, read_records(output, known), redo)
    ]


def show_plan(
    steps: Sequence[Step],
    output: Path,
    *,
    redo: Collection[str] = (),
    known: Records | None = None,
    as_json: bool = False,
) -> None:
    """Print for each step whether it is done, and the command lines of what would run; nothing is written."""
    plan = planned(steps, output, redo=redo, known=known)
    if as_json:
        print(json.dumps({"output": str(output), "plan": plan}))
        return
    for entry in plan:
        commands = entry.pop("commands")
        terminal.show("\n  ".join([": ".join(filter(None, entry.values())), *commands]))
