"""Every command that reads a checkpoint checks the import's record of its files."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from support.damage import assert_refused

from nemo_longpo.checkpoints.integrity import RECORD, write_record
from nemo_longpo.cli import main

WEIGHTS = "weights/__0_0.distcp"
TOKENIZER = "context/hf/tokenizer.json"


@pytest.fixture
def checkpoint(nemo_checkpoints, tmp_path) -> Path:
    copy = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "checkpoint")
    write_record(copy)
    return copy


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


DAMAGE = {
    "flipped weights": (flip, WEIGHTS, "is damaged: its sha256 is"),
    "flipped tokenizer": (flip, TOKENIZER, "is damaged: its sha256 is"),
    "grown weights": (grow, WEIGHTS, "bytes and was written with"),
    "lost tokenizer": (Path.unlink, TOKENIZER, "is missing; copy the checkpoint again"),
}


def test_an_import_records_its_files(hf_models, tmp_path, capsys):
    command = ["convert", "import", "--model", str(hf_models["mistral"]), "--output", str(tmp_path / "nemo")]
    assert main(command) == 0
    recorded = json.loads((tmp_path / "nemo" / RECORD).read_text())["files"]
    found = {path for path in (tmp_path / "nemo").rglob("*") if path.is_file() and path.name != RECORD}
    assert recorded == {
        path.relative_to(tmp_path / "nemo").as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in found
    }
    assert {WEIGHTS, TOKENIZER, "weights/.metadata", "context/io.json"} <= recorded.keys()


@pytest.mark.parametrize("fault", DAMAGE)
def test_export_and_verify_name_the_file(fault, checkpoint, hf_models, tmp_path, capsys):
    damage, name, message = DAMAGE[fault]
    damage(checkpoint / name)
    export = ["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "output")]
    verify = ["verify", str(hf_models["mistral"]), str(checkpoint), "--no-logits"]
    for command in (export, verify):
        assert_refused(command, message, tmp_path, capsys)
        assert_refused(command, str(checkpoint / name), tmp_path, capsys)


def test_sizes_are_checked_without_hashes_too(checkpoint, tmp_path, capsys):
    flip(checkpoint / TOKENIZER)
    export = ["export", "--checkpoint", str(checkpoint), "--no-hashes", "--output"]
    assert main(["convert", *export, str(tmp_path / "output")]) == 0
    grow(checkpoint / TOKENIZER)
    assert_refused([*export, str(tmp_path / "other")], "bytes and was written with", tmp_path, capsys)


@pytest.mark.parametrize("fault", ["grown weights", "lost tokenizer"])
def test_inspect_reports_export_problems(fault, checkpoint, capsys):
    damage, name, message = DAMAGE[fault]
    damage(checkpoint / name)
    assert main(["convert", "inspect", "--json", str(checkpoint)]) == 0
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert any(message in line and str(checkpoint / name) in line for line in advice), advice
