"""Ways to damage a model, and what a refusal looks like: one sentence, exit status 2, nothing left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_longpo.cli import main

Fault = tuple[Callable[[Path], object], str]
"""What it does to a model's directory, and what the refusal says."""

QUERY = "model.layers.1.self_attn.q_proj.weight"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 4943162336\n"
WEB_PAGE = "\n<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def truncate(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def assert_refused(command: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(workplace.rglob("*"))
    assert main(["convert", *command]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longpo: error: ")]
    assert message in line
    assert sorted(workplace.rglob("*")) == before


def assert_damage_refused(
    direction: str, source: Path, fault: Fault, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`direction` of a copy of `source` with the fault."""
    damage, message = fault
    copy = shutil.copytree(source, workplace / "damaged")
    damage(copy)
    option = {"import": "--model", "export": "--checkpoint"}[direction]
    command = [direction, option, str(copy), "--output", str(workplace / "output")]
    assert_refused(command, message, workplace, capsys)
