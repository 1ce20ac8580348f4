"""Descriptions of directories: exact numbers on both sides, and the other commands' errors as advice."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from support.adapter_checkpoints import describe, make_adapters, read, write
from support.conversion_cases import CASES
from support.damage import edit_json
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_longpo.cli import main
from nemo_longpo.conversion.huggingface.tensor_files import SafetensorsReader
from nemo_longpo.conversion.inspection.inspect_model import inspect_model
from nemo_longpo.conversion.torch_dist import DistCheckpoint


@pytest.mark.parametrize("case", CASES)
def test_both_sides_of_a_model(case, hf_models, nemo_checkpoints, monkeypatch):
    """Exact, and read only from the headers if requested."""
    model = AutoModelForCausalLM.from_pretrained(hf_models[case], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(hf_models[case])
    for reader in (SafetensorsReader, DistCheckpoint):
        monkeypatch.setattr(reader, "read", lambda *_: pytest.fail("a tensor was read"))
    ours, theirs = (inspect_model(sides[case], headers_only=True) for sides in (hf_models, nemo_checkpoints))
    parameters = list(model.parameters())
    (dtype,) = {str(parameter.dtype).removeprefix("torch.") for parameter in parameters}
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    config, scaling = model.config, json.loads((hf_models[case] / "config.json").read_text()).get("rope_scaling")
    assert [line.startswith("import with --rope-theta") for line in ours["advice"]] == [True] * bool(scaling)
    assert theirs["advice"] == []
    for report in (ours, theirs):
        assert report["architecture"] == config.architectures[0]
        assert report["parameters"] == sum(parameter.numel() for parameter in parameters)
        assert report["weights"]["bytes_by_dtype"] == {dtype: size}
        assert report["sizes"] == {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "feed_forward": config.intermediate_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_size": model.model.layers[0].self_attn.head_dim,
            "vocabulary": config.vocab_size,
            "tied": config.tie_word_embeddings,
        }
        assert report["positions"]["max_position_embeddings"] == config.max_position_embeddings
        assert report["positions"]["rope_theta"] == config.rope_theta
        assert report["positions"]["rope_scaling"] == scaling
        assert report["tokenizer"]["tokens"] == len(tokenizer)
        assert report["tokenizer"]["special_ids"]["eos"]["tokenizer"] == tokenizer.eos_token_id
        assert report["tokenizer"]["chat_template"] == "chat_template.jinja"
    assert ours["weights"]["files"] == len(list(hf_models[case].glob("*.safetensors")))
    assert (ours["nemo"], theirs["nemo"]["trained"], theirs["nemo"]["optimizer"]) == (None, None, None)


TEXT = """\
path              {path}
kind              Hugging Face model
architecture      MistralForCausalLM (family mistral)
parameters        124,864
weights           487.8 KiB float32 in 21 tensors, 1 file

layers            2
hidden size       64
feed-forward size 96
heads             4 of size 16, 2 for keys and values
vocabulary        493 rows, 493 tokens
embeddings        untied

positions         4,096
rotary base       10,000
rope scaling      none
sliding window    1,024

tokenizer         PreTrainedTokenizerFast (tokenizer.json)
chat template     chat_template.jinja
bos id            1 in config, 1 in generation_config, 1 in tokenizer
eos id            2 in config, [2, 7] in generation_config, 2 in tokenizer
pad id            none

- import: {path}/config.json: attention is limited to a sliding window of 1024 tokens, shorter than the 4096 \
positions; pass --full-attention to train and export without the window, or --max-length of at most the window
"""


def test_for_people(hf_models, tmp_path, capsys):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    edit_json(model / "config.json", sliding_window=1024)
    edit_json(model / "generation_config.json", eos_token_id=[2, 7])
    assert main(["convert", "inspect", str(model)]) == 0
    assert capsys.readouterr().out == TEXT.format(path=model)
    assert main(["convert", "inspect", "--json", str(model)]) == 0
    assert json.loads(capsys.readouterr().out) == inspect_model(model)


ADVICE: dict[str, tuple[Callable[[Path], object], str]] = {
    "scaling": (
        lambda model: edit_json(model / "config.json", rope_scaling={"type": "linear", "factor": 2.0}),
        "import with --rope-theta: {path}/config.json: the model's rope scaling was made for another base",
    ),
    "quantized": (
        lambda model: edit_json(model / "config.json", quantization_config={"bits": 4}),
        "describes a quantized model",
    ),
    "custom code": (
        lambda model: edit_json(model / "config.json", auto_map={"AutoModel": "m.M"}),
        "code that comes with",
    ),
    "pickle": (
        lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"),
        "holds its weights as pickles (pytorch_model.bin)",
    ),
    "truncated": (lambda model: (model / "model.safetensors").write_bytes(b"\x08"), "model.safetensors is damaged"),
    "lost tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "import: {path} has no tokenizer"),
    "end of text": (
        lambda model: edit_json(model / "generation_config.json", eos_token_id=[3, 4]),
        "tokenizer: the files disagree on eos_token_id: config 2, generation_config [3, 4], tokenizer 2",
    ),
    "template": (lambda model: (model / "chat_template.jinja").unlink(), "tokenizer: no chat template"),
    "too few rows": (
        lambda model: edit_json(model / "config.json", vocab_size=400),
        "token 492 has no row in a vocabulary",
    ),
}


@pytest.mark.parametrize("fault", ADVICE)
def test_advice(fault, hf_models, tmp_path):
    damage, message = ADVICE[fault]
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    damage(model)
    advice = inspect_model(model)["advice"]
    assert any(message.format(path=model) in line for line in advice), advice


def test_a_window_that_hides_nothing(hf_models, tmp_path):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    edit_json(model / "config.json", sliding_window=8192)
    report = inspect_model(model)
    assert (report["positions"]["sliding_window"], report["advice"]) == (None, [])


def test_a_model_of_an_unknown_family(hf_models, tmp_path):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    edit_json(model / "config.json", model_type="gemma", architectures=["GemmaForCausalLM"])
    report = inspect_model(model)
    assert (report["architecture"], report["family"]) == ("GemmaForCausalLM", None)
    assert report["parameters"] == 124_864
    assert report["sizes"]["layers"] == 2
    assert "describes GemmaForCausalLM (gemma); supported are" in report["advice"][0]


def test_a_trained_checkpoint(nemo_checkpoints, tmp_path):
    """Rows that tensor parallelism added, optimizer state, progress, our constants."""
    trained = shutil.copytree(nemo_checkpoints["qwen2"], tmp_path / "trained")
    tensors = read(trained)
    before = sum(tensor.nbytes for tensor in tensors.values())
    embedding = "module.embedding.word_embeddings.weight"
    tensors[embedding] = torch.cat([tensors[embedding], torch.zeros(3, tensors[embedding].shape[1])])
    moments = {f"optimizer.state.{name}.{key}": tensor for key, tensor in tensors.items() for name in ("m", "v")}
    write(trained, tensors | moments)
    progress = {"global_step": 7, "epoch": 1, "SomeDataModule": {"consumed_samples": 56}, "file": Path("x")}
    torch.save(progress, trained / "weights" / "common.pt")
    describe(trained, objective={"_target_": "a.Objective", "beta": 0.1}, pair_layout="shared_prefix")
    report = inspect_model(trained)
    assert report["nemo"] | {"parallel": None} == {
        "model": "Qwen2Model",
        "config": "Qwen2Config",
        "adapters": None,
        "embedding_rows": report["sizes"]["vocabulary"] + 3,
        "objective": {"beta": 0.1},
        "pair_layout": "shared_prefix",
        "trained": {"steps": 7, "epoch": 1, "consumed_samples": 56},
        "parallel": None,
        "optimizer": {"tensors": 2 * len(tensors), "bytes": 2 * (before + 3 * 64 * 4)},
    }
    assert report["parameters"] == inspect_model(nemo_checkpoints["qwen2"])["parameters"]


def test_adapters(nemo_checkpoints, tmp_path, capsys):
    adapters = make_adapters(nemo_checkpoints["mistral"], tmp_path / "adapters")
    report = inspect_model(adapters)
    assert (report["kind"], report["advice"]) == ("nemo adapters", [])
    assert report["parameters"] == inspect_model(nemo_checkpoints["mistral"])["parameters"]
    assert report["nemo"]["adapters"] == {
        "dim": 4,
        "alpha": 8,
        "target_modules": None,
        "base": str(nemo_checkpoints["mistral"]),
    }
    (adapters / "weights" / "adapter_metadata.json").write_text('{"model_ckpt_path": "/gone"}')
    assert main(["convert", "inspect", str(adapters)]) == 0
    text = capsys.readouterr().out
    assert "adapters          rank 4, alpha 8: all linear layers" in text
    assert "layers            2" in text
    assert "pass --base-checkpoint" in text


def test_stock_checkpoint_without_positions(nemo_checkpoints, tmp_path):
    """NeMo's Mistral importer records no number of positions if the model has no sliding window."""
    stock = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "stock")
    (stock / "context" / "hf" / "config.json").unlink()
    recorded = yaml.safe_load((stock / "context" / "model.yaml").read_text())["config"]
    describe(stock, config=recorded | {"seq_length": None})
    assert inspect_model(stock)["advice"] == [
        "export: the checkpoint does not say for how many positions the model is; pass --max-length"
    ]
    describe(stock, config=recorded | {"window_size": [1024, 0]})
    report = inspect_model(stock)
    assert report["positions"]["sliding_window"] == 1024
    assert report["advice"] == [
        "training: attention is limited to a sliding window; import the model with --full-attention"
    ]


def test_a_checkpoint_without_readable_weights(nemo_checkpoints, tmp_path):
    damaged = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "damaged")
    shutil.rmtree(damaged / "weights")
    report = inspect_model(damaged)
    assert report["weights"] is None
    assert report["sizes"]["layers"] == 2
    assert "weights/.metadata is missing, so the checkpoint is incomplete" in report["advice"][0]


def test_directory_without_a_model_is_refused(nemo_checkpoints, tmp_path, capsys):
    cases = {
        tmp_path / "absent": "is not a directory",
        nemo_checkpoints["mistral"] / "weights": f"give the directory above it, {nemo_checkpoints['mistral']}",
        nemo_checkpoints["mistral"].parent: f"; {nemo_checkpoints[max(nemo_checkpoints)]} in it is one",
        tmp_path: "is neither a Hugging Face directory (config.json) nor a NeMo checkpoint (context/) nor one of",
    }
    for path, message in cases.items():
        assert main(["convert", "inspect", str(path)]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["convert", "inspect", str(tmp_path)]) == 2
    assert "holds PEFT adapters, not a model" in capsys.readouterr().err


@pytest.mark.slow
def test_needs_no_trainer(nemo_checkpoints):
    code = (
        "import sys; from nemo_longpo.cli import main; assert main(['convert', 'inspect', sys.argv[1]]) == 0; "
        "assert not {'nemo', 'megatron', 'lightning', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, nemo_checkpoints["mistral"]], check=True, capture_output=True)


def test_huge_sizes_cost_no_time(hf_models, nemo_checkpoints, tmp_path):
    """Claimed sizes cost no time: 2³¹ layers are described as fast as two."""
    most = 2**31 - 1
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    nemo = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "nemo")
    stock = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "stock")
    for directory in (model, nemo / "context" / "hf"):
        edit_json(directory / "config.json", num_hidden_layers=most, vocab_size=most, max_position_embeddings=most)
    (stock / "context" / "hf" / "config.json").unlink()
    recorded = yaml.safe_load((stock / "context" / "model.yaml").read_text())["config"]
    describe(stock, config=recorded | {"num_layers": most, "vocab_size": most, "seq_length": most})
    start = time.process_time()
    reports = [inspect_model(path) for path in (model, nemo, stock)]
    assert time.process_time() - start < 5
    assert reports[0]["parameters"] > 10**13
    for report in reports:
        assert any("has shape" in line for line in report["advice"]), report["advice"]
