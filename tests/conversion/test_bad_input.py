"""Each fault in the input gives one sentence with its cause, exit status 2, and no files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.damage import LFS_POINTER, WEB_PAGE, Fault, assert_damage_refused, assert_refused, edit_json, truncate

from nemo_longpo.cli import main


def config(**changes: object) -> Callable[[Path], object]:
    return lambda model: edit_json(model / "config.json", **changes)


def write(file: str, content: str) -> Callable[[Path], object]:
    return lambda model: (model / file).write_text(content)


SIZE = "should be a whole number from 1 to 2147483647, not"
IMPORT_FAULTS: dict[str, Fault] = {
    "no config": (lambda model: (model / "config.json").unlink(), "holds no config.json"),
    "config cut": (lambda model: truncate(model / "config.json", 0.5), "config.json is not readable JSON"),
    "config empty": (write("config.json", ""), "config.json is not readable JSON"),
    "config with a mark": (write("config.json", "\ufeff{}"), "config.json begins with a byte order mark"),
    "config in latin-1": (lambda model: (model / "config.json").write_bytes(b'{"a": "\xe9"}'), "is not readable JSON"),
    "config a list": (write("config.json", "[1]"), "config.json should hold a JSON object, not a list"),
    "config too deep": (write("config.json", 99999 * "["), "config.json is not readable JSON"),
    "config a web page": (write("config.json", WEB_PAGE), "config.json is a web page, not the file that was asked for"),
    "gemma": (
        config(model_type="gemma", architectures=["GemmaForCausalLM"]),
        "describes GemmaForCausalLM (gemma); supported are MistralForCausalLM (mistral), Qwen2ForCausalLM (qwen2), "
        "Qwen3ForCausalLM (qwen3), LlamaForCausalLM (llama)",
    ),
    "multimodal": (
        config(model_type="mistral3", architectures=["Mistral3ForConditionalGeneration"], text_config={}),
        "describes Mistral3ForConditionalGeneration (mistral3); supported are",
    ),
    "no architecture": (config(architectures=None), "describes no architecture (mistral); supported are"),
    "a size as text": (config(vocab_size="32000"), f"config.json: field 'vocab_size' {SIZE} '32000'"),
    "a size of zero": (config(num_attention_heads=0), f"config.json: field 'num_attention_heads' {SIZE} 0"),
    "a negative size": (config(max_position_embeddings=-1), f"config.json: field 'max_position_embeddings' {SIZE} -1"),
    "a huge size": (config(hidden_size=2**31), f"config.json: field 'hidden_size' {SIZE} 2147483648"),
    "a broken size": (config(intermediate_size=96.0), f"config.json: field 'intermediate_size' {SIZE} 96.0"),
    "a list of sizes": (config(num_key_value_heads=[2, 2]), f"config.json: field 'num_key_value_heads' {SIZE} [2, 2]"),
    "no sizes": (config(vocab_size=None), f"config.json: field 'vocab_size' {SIZE} None"),
    "too many layers": (config(num_hidden_layers=10**9), "tensor model.layers.2.input_layernorm.weight is missing"),
    "heads that do not divide": (config(num_attention_heads=3), "3 attention heads do not divide over 2 key-value"),
    "huge base": (config(rope_theta=10**400), "field 'rope_theta' should be a number from 0 to 1e300, not 1000"),
    "scaling a word": (config(rope_scaling="yarn"), "field 'rope_scaling' should be an object, not 'yarn'"),
    "tied as text": (config(tie_word_embeddings="false"), "field 'tie_word_embeddings' should be true or false"),
    "dtype a number": (config(torch_dtype=16), "field 'torch_dtype' should be text, not 16"),
    "architecture a word": (config(architectures="MistralForCausalLM"), "should be a list of strings"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer"),
    "tokenizer of transformers 5": (
        lambda model: edit_json(model / "tokenizer_config.json", tokenizer_class="TokenizersBackend"),
        "set tokenizer_class to PreTrainedTokenizerFast in it and rename extra_special_tokens to additional_special_",
    ),
    "special tokens of transformers 5": (
        lambda model: edit_json(model / "tokenizer_config.json", extra_special_tokens=["<|im_start|>"]),
        "tokenizer_config.json is of transformers 5, which transformers 4 (that of NeMo) cannot load",
    ),
    "adapter": (
        lambda model: (model / "config.json").rename(model / "adapter_config.json"),
        "adapter_config.json makes ",
    ),
    "tokenizer an lfs pointer": (write("tokenizer.json", LFS_POINTER), "tokenizer.json is a Git LFS pointer"),
    "tokenizer.model an lfs pointer": (write("tokenizer.model", LFS_POINTER), "tokenizer.model is a Git LFS pointer"),
    "sliding window": (
        config(sliding_window=1024),
        "sliding window of 1024 tokens, shorter than the 4096 positions; pass --full-attention",
    ),
    "rope scaling": (
        config(rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
        "config.json: rope scaling of type dynamic is not supported; choose linear, yarn, llama3 or none",
    ),
    "quantized": (config(quantization_config={"bits": 4}), "describes a quantized model"),
    "activation": (config(hidden_act="gelu"), "hidden_act is gelu"),
}

EXPORT_FAULTS: dict[str, Fault] = {
    "no context": (lambda nemo: shutil.rmtree(nemo / "context"), "is not a NeMo 2 checkpoint"),
    "no weights": (lambda nemo: shutil.rmtree(nemo / "weights"), "weights/.metadata is missing, so the checkpoint is"),
    "no configuration": (lambda nemo: (nemo / "context" / "io.json").unlink(), "context/io.json is missing, so the"),
    "no model": (lambda nemo: (nemo / "context" / "model.yaml").unlink(), "context/model.yaml is missing, so the ch"),
    "no common state": (lambda nemo: (nemo / "weights" / "common.pt").unlink(), "weights/common.pt is missing, so"),
    "no backend": (lambda nemo: (nemo / "weights" / "metadata.json").unlink(), "weights/metadata.json is missing, so"),
    "empty configuration": (lambda nemo: truncate(nemo / "context" / "io.json", 0), "context/io.json is empty; copy"),
    "empty model": (lambda nemo: truncate(nemo / "context" / "model.yaml", 0), "context/model.yaml is empty; copy"),
    "empty metadata": (
        lambda nemo: truncate(nemo / "weights" / ".metadata", 0),
        "weights/.metadata is empty; ",
    ),
    "empty common state": (
        lambda nemo: truncate(nemo / "weights" / "common.pt", 0),
        "weights/common.pt is empty; ",
    ),
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


@pytest.mark.parametrize("fault", IMPORT_FAULTS)
def test_import_refuses(fault, hf_models, tmp_path, capsys):
    assert_damage_refused("import", hf_models["mistral"], IMPORT_FAULTS[fault], tmp_path, capsys)


@pytest.mark.parametrize("fault", EXPORT_FAULTS)
def test_export_refuses(fault, nemo_checkpoints, tmp_path, capsys):
    assert_damage_refused("export", nemo_checkpoints["mistral"], EXPORT_FAULTS[fault], tmp_path, capsys)


def test_missing_directories(tmp_path, capsys):
    absent, output = str(tmp_path / "absent"), str(tmp_path / "output")
    assert_refused(["import", "--model", absent, "--output", output], "absent is not a directory", tmp_path, capsys)
    assert_refused(["export", "--checkpoint", absent, "--output", output], "not a NeMo 2 checkp", tmp_path, capsys)


def test_root_of_the_hub_cache(hf_models, tmp_path, capsys):
    root = tmp_path / "models--mistralai--Mistral-7B-v0.2"
    snapshot = shutil.copytree(hf_models["mistral"], root / "snapshots" / "41b61a33")
    hint = f"; it is a model's root in the Hub's cache, give its snapshot {snapshot}"
    output = str(tmp_path / "output")
    assert_refused(["import", "--model", str(root), "--output", output], hint, tmp_path, capsys)
    assert_refused(["verify", str(root), str(hf_models["mistral"])], hint, tmp_path, capsys)
    assert_refused(["inspect", str(root)], hint, tmp_path, capsys)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("output", ["model", "model/nemo", ".", "link"])
def test_output_inside_input_is_refused(output, overwrite, hf_models, tmp_path, capsys):
    """Replacing the output would remove the model."""
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    (tmp_path / "link").symlink_to(model)
    command = ["import", "--model", str(model), "--output", str(tmp_path / output), *overwrite]
    assert_refused(command, "lie in one another; choose another --output", tmp_path, capsys)


def test_file_instead_of_a_directory(hf_models, nemo_checkpoints, tmp_path, capsys):
    model, nemo, output = hf_models["mistral"], nemo_checkpoints["mistral"], str(tmp_path / "output")
    file = str(model / "model.safetensors")
    assert_refused(["import", "--model", file, "--output", output], f"{file} is not a directory", tmp_path, capsys)
    assert_refused(["export", "--checkpoint", file, "--output", output], "not a NeMo 2 checkp", tmp_path, capsys)
    base = ["export", "--checkpoint", str(nemo), "--base", file, "--output", output]
    assert_refused(base, f"{file} is not a directory", tmp_path, capsys)
    inside = str(model / "config.json" / "output")
    assert_refused(["import", "--model", str(model), "--output", inside], "lie in one another", tmp_path, capsys)
    taken = tmp_path / "taken"
    taken.write_text("")
    command = ["export", "--checkpoint", str(nemo), "--output", str(taken / "output")]
    assert_refused(command, f"{taken} is not a directory", tmp_path, capsys)


def test_broken_tokenizer(hf_models, tmp_path, capsys):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    (model / "tokenizer.json").write_text("{}")
    command = ["import", "--model", str(model), "--output", str(tmp_path / "nemo")]
    assert_refused(command, "tokenizer.json cannot be read by tokenizers ", tmp_path, capsys)


def test_new_base_needs_a_scaling_choice(hf_models, tmp_path, capsys):
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
def test_impossible_options_are_refused(options, hf_models, tmp_path, capsys):
    command = ["convert", "import", "--model", str(hf_models["mistral"]), "--output", str(tmp_path / "nemo"), *options]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert options[0] in capsys.readouterr().err
