"""Each fault in the input: one sentence that names the culprit, exit status 2, and nothing left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_longpo.cli import main
from nemo_longpo.conversion.outputs import new_directory


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def truncate(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


QUERY = "model.layers.1.self_attn.q_proj.weight"


def to_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


IMPORT_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda model: (model / "config.json").unlink(), "config.json does not exist"),
    "config not json": (lambda model: truncate(model / "config.json", 0.5), "config.json is not readable JSON"),
    "gemma": (
        lambda model: edit_json(model / "config.json", model_type="gemma", architectures=["GemmaForCausalLM"]),
        "describes GemmaForCausalLM (gemma); supported are MistralForCausalLM (mistral), Qwen2ForCausalLM (qwen2), "
        "LlamaForCausalLM (llama)",
    ),
    "pickle": (to_pickle, "pytorch_model.bin is a pickle"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "model.safetensors does not exist"),
    "truncated": (lambda model: truncate(model / "model.safetensors", 0.7), "model.safetensors is damaged or trunc"),
    "missing tensor": (lambda model: edit_tensors(model, lambda t: t.pop(QUERY)), f"tensor {QUERY} is missing"),
    "extra tensor": (
        lambda model: edit_tensors(model, lambda t: t.update({"lora_A.weight": torch.ones(1)})),
        "1 tensors have no place in MistralForCausalLM, the first is lora_A.weight",
    ),
    "shape": (
        lambda model: edit_tensors(model, lambda t: t.update({QUERY: torch.ones(2, 3)})),
        f"tensor {QUERY} in model.safetensors has shape [2, 3], not [64, 64]",
    ),
    "dtype": (
        lambda model: edit_tensors(model, lambda t: t.update({QUERY: t[QUERY].to(torch.int8)})),
        f"tensor {QUERY} in model.safetensors has dtype I8",
    ),
    "mixed dtypes": (
        lambda model: edit_tensors(model, lambda t: t.update({QUERY: t[QUERY].half()})),
        "have different dtypes",
    ),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer"),
    "sliding window": (
        lambda model: edit_json(model / "config.json", sliding_window=1024),
        "sliding window of 1024 tokens, shorter than the 4096 positions; pass --full-attention",
    ),
    "rope scaling": (
        lambda model: edit_json(model / "config.json", rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
        "config.json: rope scaling of type dynamic is not supported; choose linear, yarn, llama3 or none",
    ),
    "quantized": (
        lambda model: edit_json(model / "config.json", quantization_config={"bits": 4}),
        "describes a quantized model",
    ),
    "activation": (lambda model: edit_json(model / "config.json", hidden_act="gelu"), "hidden_act is gelu"),
    "no sizes": (lambda model: edit_json(model / "config.json", vocab_size=None), "no whole number for vocab_size"),
}

EXPORT_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no context": (lambda nemo: shutil.rmtree(nemo / "context"), "is not a NeMo 2 checkpoint"),
    "no weights": (lambda nemo: shutil.rmtree(nemo / "weights"), "is not a complete Megatron torch_dist checkpoint"),
    "no hf files": (lambda nemo: shutil.rmtree(nemo / "context" / "hf"), "pass --base"),
    "damaged metadata": (lambda nemo: truncate(nemo / "weights" / ".metadata", 0.5), ".metadata is damaged"),
    "truncated weights": (lambda nemo: truncate(nemo / "weights" / "__0_0.distcp", 0.5), "__0_0.distcp is truncated"),
    "missing weights": (lambda nemo: (nemo / "weights" / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
    "other model": (
        lambda nemo: edit_json(nemo / "context" / "hf" / "config.json", intermediate_size=100),
        "module.decoder.layers.mlp.linear_fc1.weight has shape [2, 192, 64], the model's config.json says [2, 200, 64]",
    ),
    "other family": (
        lambda nemo: edit_json(
            nemo / "context" / "hf" / "config.json", model_type="qwen2", architectures=["Qwen2ForCausalLM"]
        ),
        "has no tensor module.decoder.layers.self_attention.linear_qkv.bias",
    ),
}


def assert_refused(command: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(workplace.iterdir())
    assert main(["convert", *command]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longpo: error: ")]
    assert message in line
    assert sorted(workplace.iterdir()) == before


@pytest.mark.parametrize("fault", IMPORT_FAULTS)
def test_import_refuses(fault, hf_models, tmp_path, capsys):
    damage, message = IMPORT_FAULTS[fault]
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    damage(model)
    assert_refused(["import", "--model", str(model), "--output", str(tmp_path / "nemo")], message, tmp_path, capsys)


@pytest.mark.parametrize("fault", EXPORT_FAULTS)
def test_export_refuses(fault, nemo_checkpoints, tmp_path, capsys):
    damage, message = EXPORT_FAULTS[fault]
    nemo = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "nemo")
    damage(nemo)
    assert_refused(["export", "--checkpoint", str(nemo), "--output", str(tmp_path / "hf")], message, tmp_path, capsys)


def test_import_refuses_a_shard_that_the_index_promises(hf_models, tmp_path, capsys):
    model = shutil.copytree(hf_models["qwen2-untied-bf16"], tmp_path / "model")
    lost = sorted(model.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert_refused(["import", "--model", str(model), "--output", str(tmp_path / "nemo")], lost.name, tmp_path, capsys)


def test_missing_directories(tmp_path, capsys):
    absent, output = str(tmp_path / "absent"), str(tmp_path / "output")
    assert_refused(["import", "--model", absent, "--output", output], "absent is not a directory", tmp_path, capsys)
    assert_refused(["export", "--checkpoint", absent, "--output", output], "not a NeMo 2 checkp", tmp_path, capsys)


def test_broken_tokenizer(hf_models, tmp_path, capsys):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    (model / "tokenizer.json").write_text("{}")
    command = ["import", "--model", str(model), "--output", str(tmp_path / "nemo")]
    assert_refused(command, "the tokenizer does not load", tmp_path, capsys)


def test_existing_output_needs_overwrite(hf_models, tmp_path, capsys):
    output = tmp_path / "nemo"
    output.mkdir()
    (output / "mine").write_text("keep")
    command = ["import", "--model", str(hf_models["mistral"]), "--output", str(output)]
    assert_refused(command, "exists already; pass --overwrite", tmp_path, capsys)
    assert (output / "mine").read_text() == "keep"
    assert main(["convert", *command, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(output)}
    assert sorted(path.name for path in output.iterdir()) == ["context", "weights"]


def test_a_new_base_under_an_old_scaling_needs_a_choice(hf_models, tmp_path, capsys):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    edit_json(model / "config.json", rope_scaling={"rope_type": "linear", "factor": 4.0})
    command = ["import", "--model", str(model), "--output", str(tmp_path / "nemo"), "--rope-theta", "1e7"]
    assert_refused(command, "--rope-scaling none to drop the scaling, or --rope-scaling keep", tmp_path, capsys)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ('{"rope_type": "yarn"}', "--rope-scaling: rope scaling of type yarn needs factor; add it"),
        ('{"rope_type": "linear", "factor": 2, "rope_theta": 1e7}', "not part of the scaling; pass --rope-theta"),
    ],
)
def test_import_refuses_a_scaling(scaling, message, hf_models, tmp_path, capsys):
    command = ["import", "--model", str(hf_models["mistral"]), "--output", str(tmp_path / "nemo")]
    assert_refused([*command, "--rope-scaling", scaling], message, tmp_path, capsys)


@pytest.mark.parametrize(
    "options", [["--rope-theta", "0"], ["--rope-theta", "nan"], ["--max-length", "-1"], ["--rope-scaling", "yarn"]]
)
def test_impossible_options(options, hf_models, tmp_path, capsys):
    command = ["convert", "import", "--model", str(hf_models["mistral"]), "--output", str(tmp_path / "nemo"), *options]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert options[0] in capsys.readouterr().err


def interrupted_work(output: Path) -> None:
    with new_directory(output, overwrite=True) as partial:
        (partial / "new").write_text("half")
        raise KeyboardInterrupt


def test_interrupted_work_leaves_the_old_output(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_work(output)
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert (output / "old").read_text() == "old"
