"""The Triton kernels, run by numpy with Triton's integer widths: right also where a tile has more than 2³¹ logits."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import nemo_longpo

ROWS, COLUMNS = 70_000, 40_000  # 2.8e9 logits; never in memory
ROW, LABEL, LOGSUMEXP, GRADIENT = ROWS - 1, 33_333, 7.5, 0.25


def logit(place: np.ndarray) -> np.ndarray:
    return (place * 7919 % 1009) / 100.0


class Value:
    """A scalar or a block of a Triton program. As in Triton, products of 32-bit integers have 32 bits."""

    def __init__(self, array):
        self.array = np.atleast_1d(array)  # numpy would give a scalar the other side's width

    def to(self, dtype):
        return Value(self.array.astype(dtype))

    def __index__(self):
        return int(self.array.item())

    def _with(name):
        def method(self, other):
            other = other.array if isinstance(other, Value) else other
            return Value(getattr(self.array, name)(other))

        return method

    __add__, __radd__, __sub__, __rsub__ = map(_with, ("__add__", "__radd__", "__sub__", "__rsub__"))
    __mul__, __rmul__, __and__ = map(_with, ("__mul__", "__rmul__", "__and__"))
    __lt__, __ge__, __eq__ = map(_with, ("__lt__", "__ge__", "__eq__"))


class Pointer:
    """Memory that `read` knows by flat place; what is stored is noted."""

    def __init__(self, read, size, place=0, written=None):
        self.read, self.size, self.place = read, size, place
        self.written: dict[int, float] = {} if written is None else written
        self.dtype = SimpleNamespace(element_ty=np.float64)

    def __add__(self, offset):
        place = self.place + (offset.array if isinstance(offset, Value) else offset)
        return Pointer(self.read, self.size, place, self.written)


def load(pointer, mask=None, other=0.0):
    places = np.atleast_1d(pointer.place).astype(np.int64)
    inside = np.ones(places.shape, bool) if mask is None else mask.array
    assert ((places[inside] >= 0) & (places[inside] < pointer.size)).all(), "outside of the tensor"
    return Value(np.where(inside, pointer.read(places), other))


def store(pointer, value, mask=None):
    places = np.atleast_1d(pointer.place).astype(np.int64)
    inside = np.ones(places.shape, bool) if mask is None else mask.array
    assert ((places[inside] >= 0) & (places[inside] < pointer.size)).all(), "outside of the tensor"
    pointer.written |= dict(
        zip(places[inside].tolist(), np.broadcast_to(value.array, places.shape)[inside], strict=True)
    )


def raw(value):
    return value.array if isinstance(value, Value) else value


@pytest.fixture
def kernels(monkeypatch):
    """The module over a stand-in for Triton; `run` executes one program, `ids`, of the next kernel that is started."""
    program = SimpleNamespace(ids=(0, 0), memory=[])

    def start(function):
        class Started:
            def __getitem__(self, grid):
                def run(*arguments, num_warps):
                    tensors = iter(program.memory)
                    given = [
                        next(tensors)
                        if isinstance(value, torch.Tensor)
                        else Value(np.int32(value))
                        if position < len(arguments) - 1
                        else value
                        for position, value in enumerate(arguments)
                    ]
                    function(*given)

                return run

        return Started()

    language = SimpleNamespace(
        constexpr=int,
        int64=np.int64,
        program_id=lambda axis: Value(np.int32(program.ids[axis])),
        arange=lambda start, end: Value(np.arange(start, end, dtype=np.int32)),
        exp=lambda value: Value(np.exp(value.array)),
        max=lambda value, axis: Value(value.array.max()),
        sum=lambda value, axis: Value(value.array.sum()),
        maximum=lambda one, other: Value(np.maximum(raw(one), raw(other))),
        where=lambda which, one, other: Value(np.where(which.array, raw(one), raw(other))),
        load=load,
        store=store,
    )
    triton = ModuleType("triton")
    triton.jit, triton.cdiv, triton.language = start, lambda one, other: -(-one // other), language
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "triton.language", language)
    file = f"{nemo_longpo.__path__[0]}/logit_kernels.py"
    specification = importlib.util.spec_from_file_location("logit_kernels_over_numpy", file)
    program.module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program.module)
    return program


def inputs() -> tuple[list[Pointer], torch.Tensor, torch.Tensor]:
    logits = Pointer(logit, ROWS * COLUMNS)
    labels = Pointer(lambda place: np.full(place.shape, LABEL), ROWS)
    return [logits, labels], torch.empty(ROWS, COLUMNS, device="meta"), torch.empty(ROWS, device="meta")


def test_summary_of_the_last_row(kernels):
    memory, logits, labels = inputs()
    found = Pointer(None, 3 * ROWS)
    kernels.ids, kernels.memory = (ROW,), [*memory, found]
    kernels.module.summary(logits, labels)
    row = logit(ROW * COLUMNS + np.arange(COLUMNS, dtype=np.int64))
    assert found.written.keys() == {ROW, ROWS + ROW, 2 * ROWS + ROW}
    assert found.written[ROW] == row.max()
    assert found.written[ROWS + ROW] == row[LABEL]
    assert found.written[2 * ROWS + ROW] == pytest.approx(np.exp(row - row.max()).sum())


def test_gradient_of_the_last_row(kernels):
    """Its last block, which is not full, and the one that has the label."""
    width = kernels.module.COLUMNS
    for block in (COLUMNS // width, LABEL // width):
        memory, logits, labels = inputs()
        sums = [
            Pointer(lambda place, value=value: np.full(place.shape, value), ROWS) for value in (LOGSUMEXP, GRADIENT)
        ]
        found = Pointer(None, ROWS * COLUMNS)
        kernels.ids, kernels.memory = (ROW, block), [*memory, *sums, found]
        kernels.module.gradient(logits, labels, labels, labels, torch.float32)
        columns = np.arange(block * width, min(COLUMNS, (block + 1) * width))
        places = ROW * COLUMNS + columns.astype(np.int64)
        assert found.written.keys() == set(places.tolist())
        expected = ((columns == LABEL) - np.exp(logit(places) - LOGSUMEXP)) * GRADIENT
        np.testing.assert_allclose([found.written[place] for place in places.tolist()], expected)
