"""The benchmark for one GPU keeps what it has measured, whatever ends it."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.gpu_engine import Record, Share, layer_rows, rank_of, share_of, table
from benchmarks.gpu.gpu_kernels import attention_rows, logprob_rows
from benchmarks.gpu.gpu_profile import group_of, profile_rows
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


def test_a_rank_is_measured_on_the_cpu():
    whole = replace(MODELS["mistral-7b"], layers=3, hidden=64, ffn=96, heads=4, kv_heads=2, head_size=16, vocab=101)
    rank, share = rank_of(whole, 2), Share(48, 8, "shared_prefix", 2)
    trunk, own = attention_rows(rank, share, "cpu", rounds=1)
    assert (trunk["rows"], trunk["keys"], own["rows"], own["keys"]) == (16, 24, 4, 4)
    assert trunk["heads"] == own["heads"] == [2, 1]
    assert min(row[way] for row in (trunk, own) for way in ("forward_tflops", "backward_tflops")) > 0
    scored = {row["way"]: row for row in logprob_rows(whole, 32, "cpu", rounds=1)}
    assert scored.keys() == {"tiles", "tiles, torch alone", "all logits"}
    (layer,) = layer_rows(rank, share, whole, 2, ABOUT, 1, "cpu")
    taken = layer["seconds"] * 3 / 2 + layer["output_seconds"]
    assert layer["tokens_per_second_per_gpu"] == pytest.approx((48 + 16) / 4 / taken)


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>", "attention"),
        ("nvjet_sm90_tst_192x208_64x4_2x1_v_bz_coopB_TNT", "matrix products"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128", "matrix products"),
        ("void at::native::elementwise_kernel<128, 4, gpu_kernel_impl_nocast<direct_copy_kernel_cuda>>", "copies"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::OpaqueType<2u>>", "copies"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::FillFunctor<c10::BFloat16>>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        (
            "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>",
            "element-wise",
        ),
        ("void transformer_engine::normalization::rmsnorm_fwd_general_kernel<float>", "element-wise"),
        ("triton_poi_fused_mul_silu_0", "element-wise"),
    ],
)
def test_kernels_are_grouped_by_name(kernel, group):
    assert group_of(kernel) == group


def test_a_layer_is_profiled_on_the_cpu(tmp_path):
    shape = replace(MODELS["mistral-7b"], hidden=64, ffn=96, heads=4, kv_heads=2, head_size=16)
    record = Record(tmp_path / "found.json", minutes=1, about=ABOUT)
    record.add("profile", profile_rows(shape, Share(48, 8, "shared_prefix"), 1, "cpu"), PLACE | {"layout": "shared"})
    (row,) = record.report["profile"]
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert min(row["shares"].values()) > 0
    calls = {name: calls for name, _, _, calls in row["largest"]}
    assert calls["aten::mm"] == 4 * 2 + 4 * 2, "four products, once more in the recompute, two gradients of each"
    assert f"| {row['shares']['matrix products']:.1%} |" in (tmp_path / "found.md").read_text()
