"""`longpo evolve`: rounds at rising lengths from one file."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_longpo import steps, terminal

if TYPE_CHECKING:
    from .evolution_settings import Evolution

EXAMPLE = """example:
  longpo evolve examples/evolve.yaml --dry-run
  longpo evolve examples/evolve.yaml

Each round makes pairs from documents, trains, exports and measures, and the next one starts from its model. The same
command continues after a kill. The exit status is 1 when the gate between rounds is closed: short accuracy fell, or
too few pairs are left."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `evolve` to the `longpo` parser."""
    parser = subparsers.add_parser(
        "evolve",
        help="lengthen a model in rounds, from documents to a measured model",
        description="Run all rounds of a file: data, training, export and evaluation, each from the model before.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, metavar="FILE", help="YAML file, such as examples/evolve.yaml")
    steps.add_plan_options(parser)
    parser.add_argument("--status", action="store_true", help="say which steps are done, and do nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from . import evolution_file, forecast, gate, places, rounds

    evolution = evolution_file.load_evolution(arguments.config)
    plan = rounds.evolution_steps(evolution)
    if arguments.status:
        return _status(evolution, plan, arguments)
    if arguments.dry_run:
        expected = forecast.forecast(evolution)
        entries = steps.planned(plan, evolution.output, redo=arguments.redo)
        waiting = {entry["step"] for entry in entries if entry["commands"]}
        jobs = [(step.name, step.function) for step in plan if step.name in waiting]
        scripts = {name: job.script() for name, job in jobs if isinstance(job, places.SlurmStep)}
        if arguments.json:
            costs = [asdict(own) for own in expected]
            said = {"output": str(evolution.output), "plan": entries, "rounds": costs, "scripts": scripts}
            print(json.dumps(said))
            return 0
        steps.show_plan(plan, evolution.output, redo=arguments.redo)
        for name, script in scripts.items():
            terminal.show(f"\nbatch script of {name}:\n{script}")
        terminal.show("\n".join(["", *(line for own in expected for line in own.lines())]))
        return 0
    if arguments.redo:
        places.check_redo(evolution)
    try:
        records = steps.run_steps(plan, evolution.output, redo=arguments.redo)
    except gate.GateClosedError as closed:
        terminal.note(f"longpo evolve: {closed}")
        return 1
    summary = _summary(evolution, records)
    terminal.show(json.dumps(summary) if arguments.json else "\n".join(_line(own) for own in summary["rounds"]))
    return 0


def _summary(evolution: "Evolution", records: steps.Records) -> dict[str, Any]:
    """Return for each round its model, and what its gates have said, where the round has come so far."""
    found = [
        {"round": own.number, "length": own.length, "model": str(own.model)}
        | {
            name: value
            for step in (f"pairs-{own.number}", f"gate-{own.number}")
            if step in records
            for name, value in records[step].report.items()
        }
        for own in evolution.rounds
    ]
    return {"output": str(evolution.output), "rounds": found}


def _line(own: dict[str, Any]) -> str:
    short = f", short accuracy {own['short_change']:+.2f} points" if "short_change" in own else ""
    pairs = f", {own['pairs']:,} pairs" if "pairs" in own else ""
    return f"round {own['round']}: {own['length']:,} tokens{pairs}{short}; {own['model']}"


def _status(evolution: "Evolution", plan: list[steps.Step], arguments: argparse.Namespace) -> int:
    """Show where the rounds stand; nothing is run or written."""
    records = steps.read_records(evolution.output)
    entries = steps.planned(plan, evolution.output, redo=arguments.redo)
    for entry in entries:
        record = records.get(entry["step"])
        entry["seconds"] = None if record is None else record.seconds
        entry["begun"] = record is not None and entry["state"] != "done"
        del entry["commands"]
    if arguments.json:
        print(json.dumps({**_summary(evolution, records), "steps": entries}))
        return 0
    for entry in entries:
        state = "begun, to be continued" if entry["begun"] and entry["state"] == "to run" else entry["state"]
        taken = f", {entry['seconds']:,.0f} s" if entry["seconds"] else ""
        terminal.show(f"{entry['step']:<11} {state}{taken}{': ' if entry['why'] else ''}{entry['why']}")
    terminal.show("\n".join(_line(own) for own in _summary(evolution, records)["rounds"]))
    return 0
