"""No code in a model's directory runs: no pickles, no Python files, nothing that its settings name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.damage import assert_refused, edit_json
from support.exploits import EXPLOITS, Payload

from nemo_longpo.cli import main
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.importer import import_checkpoint


@pytest.fixture
def trap(tmp_path) -> Path:
    """A path that exists once foreign code has run."""
    path = tmp_path / "trap"
    yield path
    assert not path.exists()


def pickled(source: Path, target: Path, files: int, **extra: object) -> Path:
    """The model of `source` as `pytorch_model.bin`, or as several such files with an index, with `extra` entries."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {name: held for file in source.glob("*.safetensors") for name, held in load_file(file).items()}
    entries = list((tensors | extra).items())
    if files == 1:
        torch.save(dict(entries), target / "pytorch_model.bin")
        return target
    weight_map = {}
    for number in range(files):
        name = f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin"
        torch.save(dict(entries[number::files]), target / name)
        weight_map |= dict.fromkeys((key for key, _ in entries[number::files]), name)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: held for file in directory.glob("*.safetensors") for name, held in load_file(file).items()}


@pytest.mark.parametrize(("case", "files"), [("mistral", 1), ("qwen2-untied-bf16", 3)])
def test_pickles_are_exported_as_safetensors(case, files, hf_models, tmp_path):
    model = pickled(hf_models[case], tmp_path / "model", files)
    command = ["convert", "import", "--model", str(model), "--output", str(tmp_path / "nemo")]
    assert main(command) == 2
    assert main([*command, "--allow-pickle"]) == 0
    back = export_checkpoint(tmp_path / "nemo", tmp_path / "back")
    expected, found = tensors_of(hf_models[case]), tensors_of(back)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    names = sorted(path.name for path in back.glob("model*"))
    assert not list(back.glob("pytorch_model*"))
    if files == 1:
        assert names == ["model.safetensors"]
    else:
        assert names == [*(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)), "model.safetensors.index.json"]


def test_a_tied_pickle_with_old_buffers(hf_models, tmp_path):
    """The output layer is the embedding's own storage, stored once; a buffer of the angles follows from the config."""
    from transformers import AutoModelForCausalLM

    model = pickled(hf_models["qwen2"], tmp_path / "model", 1)
    state = AutoModelForCausalLM.from_pretrained(hf_models["qwen2"]).state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    torch.save(state, model / "pytorch_model.bin")
    back = export_checkpoint(import_checkpoint(model, tmp_path / "nemo", allow_pickle=True), tmp_path / "back")
    assert (back / "model.safetensors").read_bytes() == (hf_models["qwen2"] / "model.safetensors").read_bytes()


def test_safetensors_win(hf_models, tmp_path):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    (model / "pytorch_model.bin").write_text("never opened")
    import_checkpoint(model, tmp_path / "nemo", allow_pickle=True)


@pytest.mark.parametrize("files", [1, 3])
def test_pickle_with_foreign_objects(files, trap, hf_models, tmp_path, capsys):
    model = pickled(hf_models["mistral"], tmp_path / "model", files, payload=Payload(trap))
    command = ["import", "--model", str(model), "--output", str(tmp_path / "nemo"), "--allow-pickle"]
    assert_refused(command, ".bin asks for posix.mkdir, which weights do not need; nothing of it was", tmp_path, capsys)


def edit_pickle(model: Path, content: object) -> None:
    torch.save(content, model / "pytorch_model.bin")


BAD_PICKLES = {
    "nested": ({"state_dict": {"a": torch.ones(1)}}, "holds a dict under 'state_dict', not a plain tensor"),
    "no names": ({3: torch.ones(1)}, "holds a Tensor under 3, not a plain tensor"),
    "sparse": ({"a": torch.ones(2, 2).to_sparse()}, "holds a Tensor under 'a', not a plain tensor"),
    "no data": ({"a": torch.ones(2, device="meta")}, "holds a Tensor under 'a', not a plain tensor"),
    "a tensor": (torch.ones(1), "pytorch_model.bin holds a Tensor, not tensors by name"),
    "a module": (torch.nn.Linear(1, 1), "asks for torch.nn.modules.linear.Linear, which weights do not need"),
    "whole numbers": ({"model.embed_tokens.weight": torch.ones(493, 64, dtype=torch.int8)}, "has dtype int8; only F32"),
}


@pytest.mark.parametrize("fault", BAD_PICKLES)
def test_pickles_without_plain_tensors(fault, hf_models, tmp_path, capsys):
    content, message = BAD_PICKLES[fault]
    model = pickled(hf_models["mistral"], tmp_path / "model", 1)
    torch.save(content, model / "pytorch_model.bin")
    command = ["import", "--model", str(model), "--output", str(tmp_path / "nemo"), "--allow-pickle"]
    assert_refused(command, message, tmp_path, capsys)


def damaged_pickles(model: Path) -> dict[str, bytes]:
    whole = (model / "pytorch_model.bin").read_bytes()
    at = whole.index(b"_rebuild_tensor")
    torch.save({"a": torch.ones(1)}, model / "old.bin", _use_new_zipfile_serialization=False)
    return {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "garbage": b"garbage" * 99,
        "before PyTorch 1.6": (model / "old.bin").read_bytes(),
        "broken inside": whole[:at] + b"\x00\xff" + whole[at + 2 :],
    }


@pytest.mark.parametrize("fault", ["empty", "cut", "garbage", "before PyTorch 1.6", "broken inside"])
def test_damaged_pickles(fault, hf_models, tmp_path, capsys):
    model = pickled(hf_models["mistral"], tmp_path / "model", 1)
    (model / "pytorch_model.bin").write_bytes(damaged_pickles(model)[fault])
    command = ["import", "--model", str(model), "--output", str(tmp_path / "nemo"), "--allow-pickle"]
    assert_refused(command, "pytorch_model.bin ", tmp_path, capsys)


@pytest.fixture
def with_code(hf_models, trap, tmp_path) -> Path:
    """A model that brings Python files, each of which springs the trap when it is imported."""
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (model / name).write_text(f"import os\nos.mkdir({str(trap)!r})\nclass Own: pass\n")
    return model


def test_code_named_in_settings_is_not_run(with_code, tmp_path, capsys):
    command = ["import", "--model", str(with_code), "--output", str(tmp_path / "nemo")]
    for file, auto_map, message in (
        ("config.json", {"AutoConfig": "configuration_own.Own"}, "config.json: auto_map"),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_config.json: auto_map"),
    ):
        kept = (with_code / file).read_text()
        edit_json(with_code / file, auto_map=auto_map)
        assert_refused(command, message, tmp_path, capsys)
        (with_code / file).write_text(kept)
    assert main(["convert", *command]) == 0


def test_code_files_are_not_copied(with_code, tmp_path):
    nemo = import_checkpoint(with_code, tmp_path / "nemo")
    assert not list(nemo.rglob("*.py"))
    assert not list(export_checkpoint(nemo, tmp_path / "back").rglob("*.py"))


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_checkpoint_code_is_not_needed(exploit, nemo_checkpoints, trap, tmp_path):
    """Neither command builds anything that a checkpoint names, so that most of what verify and training refuse is no
    obstacle here; see tests/nemo/test_trust.py for those."""
    checkpoint = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "nemo")
    EXPLOITS[exploit][0](checkpoint, trap)
    main(["convert", "inspect", str(checkpoint)])
    code = main(["convert", "export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "model")])
    assert code == (2 if exploit == "a pickle in .metadata" else 0)
