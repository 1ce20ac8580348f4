"""The benchmark for one GPU keeps what it has measured, whatever ends it."""

import json

import pytest
import torch

from benchmarks.gpu.gpu_engine import Record, Share, rank_of, share_of, table
from nemo_longpo.costs.model_shape import MODELS

ABOUT = {
    "command": "python -m …",
    "device": "none",
    "torch": "2",
    "model": "mistral-7b",
    "branch_tokens": 4500,
    "peak_tflops": 700.0,
    "exactness": {"naive, bf16": {"output": 0.001}},
    "layouts_differ_by": 1e-7,
}
PLACE = {"trunk": 1024, "cp": 1, "tp": 1}
ROW = {"layout": "shared_prefix", "layers": 2, "seconds": 0.5, "tflops": 321.0, "output_seconds": 0.1}


def rows_then(error: BaseException):
    yield ROW
    raise error


def test_rows_are_written_as_they_come(tmp_path):
    record = Record(tmp_path / "found.json", minutes=1, about=ABOUT)
    with pytest.raises(KeyboardInterrupt):
        record.add("layers", rows_then(KeyboardInterrupt()), PLACE)
    assert json.loads((tmp_path / "found.json").read_text())["layers"] == [PLACE | ROW]
    assert "| 1,024 | 1 | 1 | shared_prefix | 2 | 0.5 | - | 321 |" in (tmp_path / "found.md").read_text()


def test_what_does_not_fit_is_a_row(tmp_path):
    record = Record(tmp_path / "found.json", minutes=1, about=ABOUT)
    record.add("layers", rows_then(torch.OutOfMemoryError()), PLACE)
    record.add("layers", [ROW], PLACE)
    assert record.report["layers"] == [PLACE | ROW, PLACE | {"refused": "does not fit"}, PLACE | ROW]
    assert "does not fit |" in table(record.report)


def test_nothing_starts_after_the_deadline(tmp_path):
    record = Record(tmp_path / "found.json", minutes=-1, about=ABOUT)
    record.add("kernels", rows_then(AssertionError("started")), PLACE)
    assert record.report["kernels"] == [PLACE | {"refused": "no time left"}]


def test_share_of_a_rank():
    assert share_of("1024", 64) == (Share(1024, 64, "shared_prefix", 1), 1)
    assert share_of("1024/4", 64) == (Share(1024, 64, "shared_prefix", 4), 1)
    share, tp = share_of("1024/4/2", 64)
    assert (share.cp, tp) == (4, 2)
    whole, rank = MODELS["mistral-7b"], rank_of(MODELS["mistral-7b"], tp)
    assert (rank.heads, rank.kv_heads, rank.vocab) == (whole.heads // 2, whole.kv_heads // 2, whole.vocab // 2)
    assert rank.layer_matrices * 2 == whole.layer_matrices
