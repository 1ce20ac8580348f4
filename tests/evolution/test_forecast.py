"""GPU hours and disk of the rounds, before anything runs, against sums by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import small_evolution

from nemo_longpo.cli import main
from nemo_longpo.evolution.evolution_settings import Hardware
from nemo_longpo.evolution.forecast import forecast

PARAMETERS = 7_241_732_096
LAYER_MATRICES = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336  # of a layer: q and o, k and v, feed-forward


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """The content of a file for a model of Mistral-7B's sizes, without hardware."""
    small_evolution.programs(tmp_path)
    told = small_evolution.content(tmp_path)
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    rest = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000, "torch_dtype": "bfloat16"}
    rest |= {"max_position_embeddings": 32768}
    config = tmp_path / "base/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | sizes | rest))
    return told


def reading(tokens: int) -> float:
    """FLOPs of the forward of a prompt."""
    return 32 * (2 * LAYER_MATRICES * tokens + 2 * 4096 * tokens**2)


def writing(prompt: int, new: int, gpus: int) -> float:
    """Bytes that are read from memory for an answer: the weights, shared by a batch, and its own keys and values."""
    own = 2 * 2 * 32 * 1024 * (prompt + new)
    at_once = min(64, int((0.9 * gpus * 79.1 * 2**30 - 2 * PARAMETERS) / own))
    return new * (2 * PARAMETERS / at_once + own)


def test_hours_of_data_are_those_of_its_requests(tmp_path, told):
    """Two optimizer steps of four documents, each with four chunks of 30,000 tokens."""
    told["rounds"] = [{"length": 131072, "rope_theta": 1e7}]
    told["train"]["settings"] |= {"trainer.max_steps": 2, "data.global_batch_size": 4}
    told["data"]["chunk"] = {"chunk_tokens": 30000}
    told["data"]["instruct"], told["data"]["respond"] = {"max_new_tokens": 100}, {"max_new_tokens": 500}
    told["hardware"] = {"gpu": "h100-80gb", "gpus": 2}
    (found,) = forecast(small_evolution.load(tmp_path, told))
    assert found.documents == 8
    read = 8 * (8 * reading(30000) + reading(131072) + 8 * reading(30500))
    written = 32 * (writing(30000, 100, 2) + writing(30000, 500, 2) + writing(131072, 500, 2))
    seconds = read / (0.4 * 989e12) + written / (0.6 * 3.35e12)
    assert found.data_gpu_hours == pytest.approx(seconds / 3600, rel=1e-6)  # what two GPUs share takes half as long
    told["data"]["score"] = {"ref_context": "long"}
    (longer,) = forecast(small_evolution.load(tmp_path, told))
    more = 64 * (reading(131572) - reading(30500)) / (0.4 * 989e12)
    assert longer.data_gpu_hours == pytest.approx((seconds + more) / 3600, rel=1e-6)


def test_files_of_data_hold_each_document_in_every_stage(tmp_path, told):
    told["rounds"] = [{"length": 131072, "rope_theta": 1e7}]
    told["data"]["chunk"] = {"chunk_tokens": 30000, "chunks_per_document": 2}
    told["data"]["instruct"], told["data"]["respond"] = {"max_new_tokens": 100}, {"max_new_tokens": 500}
    (found,) = forecast(small_evolution.load(tmp_path, told))
    text, ids = 131072 + 2 * 30000 + 2 * 1100, 131072 + 2 * 30000 + 4 * 1100
    assert (found.documents, found.data_bytes) == (32, 32 * (20 * text + 4 * ids))


def test_hours_of_evaluation_are_those_of_stated_lengths(tmp_path, told):
    """Two models; the questions of a file of one's own have no stated length."""
    told["evaluate"] = {"suite": ["ruler_vt", str(tmp_path / "questions.jsonl")], "lengths": [4096, 8192], "samples": 9}
    told["evaluate"] |= {"engine": "vllm", "max_model_len": 8192}
    told["evaluate"]["wording"] = str(tmp_path / "words.json")
    (tmp_path / "words.json").write_text("{}")
    told["gate"]["short_tokens"] = 4096
    told["hardware"] = {"gpu": "h100-80gb", "gpus": 4}
    found, _ = forecast(small_evolution.load(tmp_path, told))
    seconds = sum(
        18 * (reading(length - 30) / (0.4 * 989e12) + writing(length - 30, 30, 4) / (0.6 * 3.35e12))
        for length in (4096, 8192)
    )
    assert found.evaluation_gpu_hours == pytest.approx(seconds / 3600, rel=1e-6)
    assert found.not_counted == ["questions"]


def test_what_does_not_fit_is_said(tmp_path, told, capsys):
    told["rounds"] = [{"length": 131072, "rope_theta": 1e7}, {"length": 1048576, "rope_theta": 1e8}]
    told["hardware"] = {"gpu": "h100-80gb", "gpus": 1}
    assert main(["evolve", str(small_evolution.write(tmp_path, told)), "--dry-run"]) == 0
    second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round 2")]
    assert second[0].startswith("round 2, data: 32 documents, GPU hours unknown, about ")
    assert second[1].startswith("round 2, training: 4 steps, GPU hours unknown; at most 232 GB of disk for")
    assert second[2].endswith(
        "about 0.0 GPU hours for benchmarks of stated lengths, without 1 whose documents say how long they are"
    )
    assert second[3].startswith(
        "round 2: 1 x h100-80gb cannot hold the model and a prompt of 1,048,576 tokens (142 GiB); "
    )


def test_forecast_counts_gpu_hours_and_disk(tmp_path, told):
    """7.24 B parameters, of 2 bytes in two models and of 14 in two checkpoints."""
    told["rounds"] = [{"length": 131072, "rope_theta": 1e7}, {"length": 262144, "rope_theta": 1e7}]
    unknown = forecast(small_evolution.load(tmp_path, told))
    assert [own.gpu_hours for own in unknown] == [None, None]
    assert unknown[0].disk_bytes == 7_241_732_096 * (2 * 2 + 2 * 14)
    told["hardware"] = {"gpu": "h100-80gb", "gpus": 16}
    evolution = small_evolution.load(tmp_path, told)
    assert evolution.hardware == Hardware("h100-80gb", 16)
    first, second = forecast(evolution)
    assert first.gpu_hours is not None
    assert second.gpu_hours is not None
    assert 2 < second.gpu_hours / first.gpu_hours < 4  # attention is quadratic, and the rest linear
    told["train"]["settings"]["trainer.max_steps"] = 8
    assert forecast(small_evolution.load(tmp_path, told))[0].gpu_hours == pytest.approx(2 * first.gpu_hours)
    told["train"]["settings"]["model.objective.loss_type"] = "solopo"
    assert "`longpo plan --short-tokens` estimates" in forecast(small_evolution.load(tmp_path, told))[0].why
    del told["train"]["settings"]["model.objective.loss_type"]
    told["hardware"]["gpus"] = 1
    told["rounds"][1]["length"] = 2**20
    assert "training does not fit 1 x h100-80gb" in forecast(small_evolution.load(tmp_path, told))[1].why
