"""Threads work through a model without holding more of it than a tensor each."""

import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemo_longpo.conversion.exporter import lay_out, write_weights
from nemo_longpo.conversion.families.family import Piece
from nemo_longpo.conversion.families.fusions import Geometry
from nemo_longpo.conversion.families.known import FAMILIES
from nemo_longpo.conversion.targets import Target
from nemo_longpo.conversion.workers import work_through

GEOMETRY = Geometry(layers=5, hidden=4, feed_forward=6, heads=2, groups=1, head_size=2, vocabulary=7, tied=True)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_items_are_worked_on_once(workers):
    done = []
    work_through(range(10), lambda item: done.append(item) or 2, title="test", total=20, workers=workers)
    assert sorted(done) == list(range(10))


def test_as_many_at_a_time_as_there_are_workers():
    together = threading.Barrier(3, timeout=10)
    work_through(range(6), lambda item: together.wait() * 0, title="test", total=0, workers=3)


def test_the_bar_counts_bytes(capsys):
    work_through(range(3), lambda item: 2_000_000, title="import", total=6_000_000, workers=1)
    assert "import: 100%" in (bar := capsys.readouterr().err)
    assert "6.00M/6.00M" in bar


def test_nothing_is_begun_after_an_error():
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
    """Makes tensors, and knows which of the pieces that it gave away are still held by someone."""

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
        for piece in family.pieces(GEOMETRY)
        for name, shape in zip(piece.names, piece.part_shapes, strict=True)
    }
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    targets = {name: Target(name, f"{len(name) % 3}.st", torch.float16, shape) for name, shape in shapes.items()}
    write_weights(lay_out(tmp_path, targets), TrackedWeights(workers), targets, family, GEOMETRY, workers)
    written = {name: tensor for file in tmp_path.iterdir() for name, tensor in load_file(file).items()}
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == shapes
    for name, tensor in written.items():
        source = "model.embed_tokens.weight" if name == "lm_head.weight" else name
        assert torch.equal(tensor, torch.full(shapes[name], len(source), dtype=torch.float16))
