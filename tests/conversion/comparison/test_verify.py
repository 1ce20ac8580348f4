"""The whole comparison of Hugging Face directories, through the command."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.conversion_cases import edit_config

from nemo_longpo.cli import main
from nemo_longpo.conversion.comparison import verify as verify_module
from nemo_longpo.conversion.comparison.logits_jobs import run_job


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and what was printed, or the error line."""
    capsys.readouterr()
    status = main(["convert", "verify", *map(str, arguments)])
    printed = capsys.readouterr()
    if status != 2:
        return status, printed.out
    (line,) = [line for line in printed.err.splitlines() if line.startswith("longpo: error: ")]
    return status, line


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Logits; to start Python and import transformers again and again takes long."""
    monkeypatch.setattr(verify_module, "compute", lambda jobs: [run_job(job) for job in jobs])


@pytest.fixture
def copy(hf_models, tmp_path) -> Path:
    return shutil.copytree(hf_models["mistral"], tmp_path / "copy")


def test_another_base_differs_only_in_logits(hf_models, copy, tmp_path, capsys):
    """Under its own settings; otherwise both are computed with those of A, and the weights are found to be the same."""
    edit_config(copy, rope_theta=20000.0)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The river crosses the quiet village.\n\nA small boat\n")
    command = (hf_models["mistral"], copy, "--prompts", prompts, "--prompt", "One letter", "--json")
    status, printed = run(capsys, *command)
    value = json.loads(printed)
    assert (status, value["equal"], value["logits"]["common_rope"]) == (0, True, True)
    sequences = value["logits"]["sequences"]
    assert [part["name"] for part in sequences] == ["random tokens", "prompt 1", "prompt 2", "prompt 3"]
    assert sequences[0]["tokens"] == 128
    assert [part["largest"] for part in sequences] == [0.0] * 4
    status, printed = run(capsys, *command, "--own-rope")
    value = json.loads(printed)
    assert (status, value["equal"]) == (1, False)
    assert value["passed"] == {"configuration": True, "files": True, "tensors": True, "logits": False}
    assert value["logits"]["states"][0] == 0
    assert value["logits"]["states"][1] > 1e-4


def test_rounded_weights_are_compared_as_rounded(hf_models, copy, capsys):
    """In fp16 the norms only: both sides are rounded as a whole, or layers would seem to differ."""
    weights = load_file(copy / "model.safetensors")
    half = {name: value.half() if "norm" in name else value for name, value in weights.items()}
    save_file(half, copy / "model.safetensors", metadata={"format": "pt"})
    status, printed = run(capsys, hf_models["mistral"], copy)
    assert status == 0, printed
    assert "weights of both rounded to float16" in printed
    assert "5 rounded" in printed
    status, printed = run(capsys, hf_models["mistral"], copy, "--strict", "--no-logits")
    assert (status, printed.splitlines()[-1]) == (1, "different: tensors")


def test_nan_weights_skip_the_logits(copy, tmp_path, capsys):
    """Equal bytes are equal even if they are NaN, and the report names them; logits would be useless."""
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    twin = shutil.copytree(copy, tmp_path / "twin")
    status, printed = run(capsys, copy, twin)
    assert (status, printed.splitlines()[-1]) == (0, "equal")
    assert "not computed: weights are NaN or infinite" in printed
    assert "NaN or infinities in 1 tensor, the first is model.layers.1.mlp.up_proj.weight" in printed


def test_allowed_differences(hf_models, copy, capsys):
    edit_config(copy, max_position_embeddings=8192, eos_token_id=5)
    command = (hf_models["mistral"], copy, "--no-logits")
    assert run(capsys, *command)[0] == 1
    status, printed = run(capsys, *command, "--allow", "eos_token_id")
    assert (status, printed.splitlines()[-1]) == (0, "equal, but for eos_token_id, max_position_embeddings")
    assert run(capsys, *command, "--allow", "eos_token_id", "--strict")[0] == 1


def test_pickles_need_allow_pickle(hf_models, copy, capsys):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    status, line = run(capsys, hf_models["mistral"], copy)
    assert status == 2
    assert "pass --allow-pickle" in line
    status, printed = run(capsys, hf_models["mistral"], copy, "--allow-pickle", "--strict")
    assert (status, printed.splitlines()[-1]) == (0, "equal")


def test_sides_without_a_model_are_refused(hf_models, copy, tmp_path, capsys):
    model = hf_models["mistral"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").write_text("\n")
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused = {
        (model, model.parent / "qwen2" / ".." / model.name): f"both sides are {model}; give two models",
        (model, tmp_path / "empty"): "empty is neither a Hugging Face directory (config.json) nor a NeMo checkpoint",
        (tmp_path / "absent", model): "absent is neither a Hugging Face directory",
        (model, copy): f"{copy}: tensor model.norm.weight is missing",
        (model, hf_models["qwen2"], "--prompts", tmp_path / "blank"): "blank holds no prompt",
        (model, hf_models["qwen2"], "--prompts", tmp_path): "is not a readable text file",
    }
    for arguments, message in refused.items():
        status, line = run(capsys, *arguments)
        assert status == 2
        assert message in line


def test_bad_prompts_are_refused(hf_models, copy, capsys):
    """No tokens, and those of a tokenizer that knows more than the model."""
    status, line = run(capsys, hf_models["qwen2"], hf_models["mistral"], "--prompt", "")
    assert status == 2
    assert "prompt 1 has no tokens" in line
    foreign = shutil.copytree(hf_models["llama"], copy.parent / "foreign")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(hf_models["mistral"] / name, foreign / name)
    status, line = run(capsys, foreign, hf_models["llama"], "--prompt", "The river crosses the village")
    assert status == 2
    assert "its tokenizer is of another model" in line


def test_other_sizes_have_no_logits(hf_models, capsys):
    status, printed = run(capsys, hf_models["mistral"], hf_models["mistral-odd"])
    assert status == 1
    assert "not computed: A and B are of different sizes" in printed


def test_without_nemo_only_logits_are_refused(hf_models, nemo_checkpoints, monkeypatch, capsys):
    monkeypatch.setattr(verify_module.trainers, "is_installed", lambda name: False)
    sides = hf_models["mistral"], nemo_checkpoints["mistral"]
    status, line = run(capsys, *sides)
    assert status == 2
    assert f"logits of {sides[1]} need NeMo and Megatron-Core, not installed here; pass --no-logits" in line
    assert run(capsys, *sides, "--no-logits")[0] == 0
