"""Only the requested fields of `config.json` change, in both spellings of the file."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.conversion_cases import edit_config, files, read_config, write_config
from transformers import AutoModelForCausalLM

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.nemo_checkpoint.context import read_model

LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 24.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
FULL, SLIDES = "full_attention", "sliding_attention"
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}


@dataclass(frozen=True)
class Request:
    """Options of import and export, and the fields they change, in the spelling of transformers 4."""

    importing: dict[str, Any] = field(default_factory=dict)
    exporting: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    model: str = "mistral"
    before: dict[str, Any] = field(default_factory=dict)


PINNED = {"original_max_position_embeddings": 4096}
REQUESTS = {
    "nothing": Request(),
    "base": Request({"rope_theta": 1e7}, changes={"rope_theta": 1e7}),
    "base that it has": Request({"rope_theta": 10000}),
    "linear": Request({"rope_scaling": LINEAR}, changes={"rope_scaling": LINEAR}),
    "yarn": Request({"rope_scaling": YARN}, changes={"rope_scaling": YARN}, model="qwen2"),
    "llama3": Request({"rope_scaling": LLAMA3}, changes={"rope_scaling": LLAMA3}),
    "no scaling": Request({"rope_scaling": "none"}, changes={"rope_scaling": None}, model="llama"),
    "another scaling and base": Request(
        {"rope_scaling": LINEAR, "rope_theta": 1e6}, changes={"rope_scaling": LINEAR, "rope_theta": 1e6}, model="llama"
    ),
    "scaling under another base": Request(
        {"rope_scaling": "keep", "rope_theta": 1e6}, changes={"rope_theta": 1e6}, model="llama"
    ),
    "length": Request({"max_length": 16384}, changes={"max_position_embeddings": 16384}),
    "length of the export": Request(exporting={"max_length": 8192}, changes={"max_position_embeddings": 8192}),
    "length under a scaling": Request(
        {"max_length": 16384},
        changes={"max_position_embeddings": 16384, "rope_scaling": YARN | PINNED},
        before={"rope_scaling": YARN},
    ),
    "scaling and length": Request(
        {"rope_scaling": YARN, "max_length": 16384},
        changes={"max_position_embeddings": 16384, "rope_scaling": YARN | PINNED},
    ),
    "dtype": Request(exporting={"dtype": "bfloat16"}, changes={"torch_dtype": "bfloat16"}),
    "no window": Request({"full_attention": True}, changes={"sliding_window": None}, before={"sliding_window": 64}),
    "no more than the window": Request(
        {"max_length": 64}, changes={"max_position_embeddings": 64}, before={"sliding_window": 64}
    ),
    "no window of some layers": Request(
        {"full_attention": True},
        changes={"use_sliding_window": False, "layer_types": [FULL, FULL]},
        model="qwen2",
        before=QWEN_WINDOW | {"layer_types": [FULL, SLIDES]},
    ),
    "all": Request(
        {"rope_theta": 5e6, "rope_scaling": LINEAR, "max_length": 8192, "full_attention": True},
        {"dtype": "float16"},
        {
            "rope_theta": 5e6,
            "rope_scaling": LINEAR,
            "max_position_embeddings": 8192,
            "sliding_window": None,
            "torch_dtype": "float16",
        },
        before={"sliding_window": 64},
    ),
}
UNUSUAL = {"architectures_of_old": None, "_name_or_path": "Größe/模型", "nested": {"b": [1, {}], "a": 1e-7}}


def spelt_for_four(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers up to 4.55 writes it; 4.57 writes `dtype` already."""
    dtype = {} if "torch_dtype" in config else {"torch_dtype": config["dtype"]}
    return {name: value for name, value in config.items() if name != "dtype"} | dtype


def spelt_for_five(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 5 writes it, from a config spelt for 4."""
    moved = ("rope_theta", "rope_scaling", "torch_dtype")
    rope = {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {"rope_type": "default"})}
    rest = {name: value for name, value in config.items() if name not in moved}
    return rest | {"rope_parameters": rope, "dtype": config["torch_dtype"]}


@pytest.mark.slow
@pytest.mark.parametrize("spell", [spelt_for_four, spelt_for_five])
@pytest.mark.parametrize("name", REQUESTS)
def test_nothing_else_changes(name, spell, hf_models, tmp_path):
    request = REQUESTS[name]
    source = shutil.copytree(hf_models[request.model], tmp_path / "source")
    config = spelt_for_four(read_config(source) | UNUSUAL | request.before)
    write_config(source, spell(config))
    (source / "added_tokens.json").write_text('{"<|new|>":   7}')
    nemo = import_checkpoint(source, tmp_path / "nemo", **request.importing)
    back = export_checkpoint(nemo, tmp_path / "back", **request.exporting)

    expected = spell(config | request.changes)
    assert read_config(back) == expected
    assert [field for field in read_config(back) if field in config] == [field for field in config if field in expected]
    same, found = files(source), files(back)
    assert found.keys() == same.keys()
    altered = {field for field in same if found[field] != same[field]}
    assert altered == {
        *(["config.json"] if request.changes else []),
        *(["model.safetensors"] if "dtype" in request.exporting else []),
    }
    length = (config | request.changes)["max_position_embeddings"] if "max_length" in request.importing else 4096
    assert read_model(nemo / "context")["config"]["seq_length"] == length


def test_dtype_on_request(hf_models, nemo_checkpoints, tmp_path):
    back = export_checkpoint(nemo_checkpoints["mistral"], tmp_path / "back", dtype="bfloat16")
    original = load_file(hf_models["mistral"] / "model.safetensors")
    exported = load_file(back / "model.safetensors")
    assert original.keys() == exported.keys()
    assert all(torch.equal(exported[name], original[name].bfloat16()) for name in original)


def test_linear_scaling_reaches_stock_nemo(hf_models, tmp_path):
    nemo = import_checkpoint(hf_models["mistral"], tmp_path / "nemo", rope_scaling=LINEAR)
    assert read_model(nemo / "context")["config"]["seq_len_interpolation_factor"] == 2.0


@pytest.mark.parametrize(("choice", "scale"), [(None, 8.0), ("none", None), (LLAMA3 | {"factor": 32.0}, 32.0)])
def test_llama_scaling_reaches_stock_nemo(choice, scale, hf_models, tmp_path):
    nemo = import_checkpoint(hf_models["llama"], tmp_path / "nemo", rope_scaling=choice)
    assert read_model(nemo / "context")["config"].get("scale_factor") == scale


@pytest.mark.parametrize(
    ("model", "window"),
    [("mistral", {"sliding_window": 4}), ("qwen2", QWEN_WINDOW | {"sliding_window": 4, "layer_types": [FULL, SLIDES]})],
)
def test_transformers_computes_without_the_window(model: str, window: dict, hf_models: dict[str, Path], tmp_path):
    """The window shows in the logits, and is gone after the round trip."""
    source = shutil.copytree(hf_models[model], tmp_path / "source")
    edit_config(source, **window)
    nemo = import_checkpoint(source, tmp_path / "nemo", full_attention=True)
    paths = (hf_models[model], export_checkpoint(nemo, tmp_path / "back"), source)
    ids = torch.arange(12)[None]
    full, found, windowed = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in paths)
    assert torch.equal(found, full)
    assert not torch.allclose(windowed, full, atol=1e-2)
