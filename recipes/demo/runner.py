"""Run stages one after another, showing what goes on; finished stages are remembered and skipped."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nemo_longpo.atomic import write_file
from nemo_longpo.errors import InputError

from .stages import Command, Stage

_POLL_SECONDS = 0.5
_REPORT_SECONDS = 20  # between progress lines when standard output is not a terminal
_ERROR_LINES = 15


def run_stages(stages: list[Stage], output: Path) -> dict[str, float]:
    """Run the stages that have not finished in `output` yet; the seconds that each stage took.

    Raises:
        InputError: a command failed; the message ends with the last lines that it wrote.
    """
    finished = output / "stages.json"
    seconds: dict[str, float] = json.loads(finished.read_text()) if finished.exists() else {}
    (output / "logs").mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages, 1):
        label = f"[{number:2d}/{len(stages)}] {stage.name:<9} {stage.title}"
        if stage.name in seconds:
            print(f"{label}: already done", flush=True)
            continue
        seconds[stage.name] = round(_run(stage, label, output / "logs" / f"{stage.name}.log"), 1)
        write_json(finished, seconds)
    return seconds


def _run(stage: Stage, label: str, log: Path) -> float:
    started = time.monotonic()
    if stage.function is not None:
        stage.function()
    if stage.command is not None:
        _run_command(stage, stage.command, label, log)
    elapsed = time.monotonic() - started
    _show(f"{label}: {elapsed:.0f} s", last=True)
    return elapsed


def _run_command(stage: Stage, command: Command, label: str, log: Path) -> None:
    started = reported = time.monotonic()
    with log.open("wb") as file:
        # Libraries leave log files in the working directory; the logs' own folder is the place for them.
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=_environment(stage.threads), cwd=log.parent
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                elapsed = time.monotonic() - started
                status = f"{label}: {elapsed:.0f} s {stage.progress() if stage.progress else _last_bar(log)}"
                if sys.stdout.isatty():
                    _show(status)
                elif time.monotonic() - reported > _REPORT_SECONDS:
                    reported = time.monotonic()
                    _show(status, last=True)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").replace("\r", "\n").splitlines()[-_ERROR_LINES:])
        raise InputError(
            f"the stage {stage.name!r} failed with exit status {process.returncode}; its whole output is in {log} and "
            f"the same `longpo demo` command continues here.\n  command: {' '.join(command)}\n{tail}"
        )


def _environment(threads: int | None) -> dict[str, str]:
    """The demo shows the CPU path, also on a machine with a GPU, and needs nothing from the network."""
    bounds = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | bounds


def _last_bar(log: Path) -> str:
    """The newest progress bar in a log, as `tqdm` left it."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if "%|" in line), "")


def _show(text: str, last: bool = False) -> None:
    """Rewrite the current line on a terminal, or write one; `last` ends it."""
    if sys.stdout.isatty():
        width = os.get_terminal_size().columns
        print(f"\r\x1b[K{text if last else text[: width - 1]}", end="\n" if last else "", flush=True)
    else:
        print(text, flush=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, json.dumps(content, indent=1))
