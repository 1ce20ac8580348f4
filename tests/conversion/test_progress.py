"""Threads convert a model, one tensor each; output of libraries is hidden."""

import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.waiting import PATIENCE_SECONDS

from nemo_longpo.conversion.exporter import Target, lay_out, write_weights
from nemo_longpo.conversion.families.family import Piece
from nemo_longpo.conversion.families.name_tables import FAMILIES
from nemo_longpo.conversion.progress import VERBOSE, quiet_libraries, work_through
from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError

SHAPE = ModelShape(layers=5, hidden=4, ffn=6, heads=2, kv_heads=1, head_size=2, vocab=7, tied=True)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_items_are_worked_on_once(workers):
    done = []
    work_through(range(10), lambda item: done.append(item) or 2, title="test", total=20, workers=workers)
    assert sorted(done) == list(range(10))


def test_at_most_workers_run_at_once():
    together = threading.Barrier(3, timeout=PATIENCE_SECONDS)
    work_through(range(6), lambda item: together.wait() * 0, title="test", total=0, workers=3)


def test_the_bar_counts_bytes(capsys):
    work_through(range(3), lambda item: 2_000_000, title="import", total=6_000_000, workers=1)
    assert "import: 100%" in (bar := capsys.readouterr().err)
    assert "6.00M/6.00M" in bar


def test_no_item_starts_after_an_error():
    begun = []

    def fail(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return 0

    with pytest.raises(KeyboardInterrupt):
        work_through(range(1000), fail, title="test", total=0, workers=1)
    assert len(begun) < 1000


class TrackedWeights:
    """Makes tensors, and counts which of its pieces are still referenced."""

    def __init__(self, held_at_most: int):
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.held_at_most = held_at_most

    def parts(self, piece: Piece) -> list[torch.Tensor]:
        assert len(self.alive) < self.held_at_most
        tensors = [
            torch.full(shape, float(len(name))) for name, shape in zip(piece.names, piece.part_shapes, strict=True)
        ]
        self.alive.add(tensors[0])
        return tensors


@pytest.mark.parametrize("workers", [1, 2])
def test_export_holds_a_piece_per_worker(workers, tmp_path: Path):
    """Also where a tensor is written twice, here the tied embedding."""
    (family,) = (family for family in FAMILIES if family.model_type == "qwen2")
    shapes = {
        name: shape
        for piece in family.pieces(SHAPE)
        for name, shape in zip(piece.names, piece.part_shapes, strict=True)
    }
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    targets = {name: Target(name, f"{len(name) % 3}.st", torch.float16, shape) for name, shape in shapes.items()}
    write_weights(lay_out(tmp_path, targets), TrackedWeights(workers), targets, family, SHAPE, workers)
    written = {name: tensor for file in tmp_path.iterdir() for name, tensor in load_file(file).items()}
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == shapes
    for name, tensor in written.items():
        source = "model.embed_tokens.weight" if name == "lm_head.weight" else name
        assert torch.equal(tensor, torch.full(shapes[name], len(source), dtype=torch.float16))


def talk(error: type[Exception] | None = None) -> None:
    os.write(1, b"told the file descriptor\n")
    os.write(2, b"told the other one\n")
    subprocess.run([sys.executable, "-c", "print('told by a child')"], check=True)
    if error is not None:
        raise error


def test_library_output_is_hidden(capfd):
    print("before", flush=True)
    with quiet_libraries():
        talk()
    print("after", file=sys.stderr)
    assert capfd.readouterr() == ("before\n", "after\n")


def test_library_output_is_shown_after_a_crash(capfd):
    with pytest.raises(RuntimeError), quiet_libraries():
        talk(RuntimeError)
    out, err = capfd.readouterr()
    assert out == ""
    assert sorted(err.splitlines()) == ["told by a child", "told the file descriptor", "told the other one"]


def test_input_error_hides_library_output(capfd):
    with pytest.raises(InputError), quiet_libraries():
        talk(InputError)
    assert capfd.readouterr() == ("", "")


def test_verbose_shows_library_output(capfd, monkeypatch):
    monkeypatch.setenv(VERBOSE, "1")
    with quiet_libraries():
        talk()
    assert "told the file descriptor" in capfd.readouterr().out


@pytest.mark.slow
def test_import_prints_its_output(hf_models, tmp_path):
    """In a process of its own, where NeMo is loaded for the first time."""
    command = [sys.executable, "-m", "nemo_longpo.cli", "convert", "import", "--model", str(hf_models["mistral"])]
    environment = {name: value for name, value in os.environ.items() if name != VERBOSE}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "nemo")], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == f"wrote {tmp_path / 'nemo'}\n"
    assert all(part.startswith("import: ") for part in done.stderr.replace("\r", "\n").split("\n") if part), done.stderr
