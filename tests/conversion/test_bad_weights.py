"""Damaged weight files: each fault gives one sentence with the file or the tensor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.damage import LFS_POINTER, QUERY, WEB_PAGE, Fault, assert_damage_refused, edit_json, edit_tensors, truncate

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def rename(name: str) -> Callable[[Path], object]:
    return lambda model: (model / SINGLE).rename(model / name)


def replace(content: str | bytes) -> Callable[[Path], object]:
    return lambda model: (model / SINGLE).write_bytes(content.encode() if isinstance(content, str) else content)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda model: edit_tensors(model / SINGLE, change)


def as_dtype(dtype: torch.dtype) -> Callable[[Path], object]:
    return tensors(lambda held: held.update({QUERY: held[QUERY].to(dtype)}))


def directory_in_its_place(model: Path) -> None:
    (model / SINGLE).unlink()
    (model / SINGLE).mkdir()


def broken_link(model: Path) -> None:
    (model / SINGLE).unlink()
    (model / SINGLE).symlink_to("../../blobs/0123")


def header_of_another_length(model: Path) -> None:
    content = (model / SINGLE).read_bytes()
    (model / SINGLE).write_bytes((2**62).to_bytes(8, "little") + content[8:])


NO_DTYPE = "only F32, BF16, F16 are weights that can be trained"
FAULTS: dict[str, Fault] = {
    "none": (lambda model: (model / SINGLE).unlink(), f"{SINGLE} does not exist; download the model again"),
    "pickle": (rename("pytorch_model.bin"), "holds its weights as pickles (pytorch_model.bin), which can run code"),
    "pickle index": (rename("pytorch_model.bin.index.json"), "get the model as safetensors, or pass --allow-pickle"),
    "pickle of another kind": (rename("consolidated.00.pth"), "consolidated.00.pth is a pickle, which can run code"),
    "other layout": (rename("consolidated.safetensors"), "consolidated.safetensors is not in Hugging Face's layout"),
    "gguf": (rename("model.gguf"), "model.gguf is not in Hugging Face's layout; get the model as model.safetensors"),
    "no index": (rename("model-00001-of-00002.safetensors"), f"but no {INDEX} that lists the files"),
    "adapter": (
        lambda model: (model / "adapter_config.json").write_text("{}"),
        "an adapter to another model; merge the two",
    ),
    "lfs pointer": (replace(LFS_POINTER), f"{SINGLE} is a Git LFS pointer, not the file itself; run `git lfs pull` in"),
    "web page": (replace(WEB_PAGE), f"{SINGLE} is a web page, not the file that was asked for; log in"),
    "empty": (replace(""), f"{SINGLE} is damaged or truncated"),
    "garbage": (replace(b"\x10" + bytes(7) + b"not json at all"), f"{SINGLE} is damaged or truncated"),
    "a directory": (directory_in_its_place, f"{SINGLE} cannot be read: Is a directory"),
    "broken link": (broken_link, f"{SINGLE} is a link to ../../blobs/0123, which does not exist"),
    "header cut": (lambda model: truncate(model / SINGLE, 0.001), f"{SINGLE} is damaged or truncated"),
    "header length": (header_of_another_length, f"{SINGLE} is damaged or truncated"),
    "data cut": (lambda model: truncate(model / SINGLE, 0.7), f"{SINGLE} is damaged or truncated"),
    "missing tensor": (tensors(lambda held: held.pop(QUERY)), f"tensor {QUERY} is missing"),
    "extra tensor": (
        tensors(lambda held: held.update({"lora_A.weight": torch.ones(1)})),
        "there is no place in MistralForCausalLM for tensor lora_A.weight; is this an adapter",
    ),
    "extra tensors": (
        tensors(lambda held: held.update({"lora_B.weight": torch.ones(1), "lora_A.weight": torch.ones(1)})),
        "for tensor lora_A.weight and 1 more",
    ),
    "shape": (
        tensors(lambda held: held.update({QUERY: torch.ones(2, 3)})),
        f"tensor {QUERY} in {SINGLE} has shape [2, 3], not [64, 64]",
    ),
    "int8": (as_dtype(torch.int8), f"tensor {QUERY} in {SINGLE} has dtype I8; {NO_DTYPE}"),
    "int64": (as_dtype(torch.int64), f"tensor {QUERY} in {SINGLE} has dtype I64; {NO_DTYPE}"),
    "bool": (as_dtype(torch.bool), f"tensor {QUERY} in {SINGLE} has dtype BOOL; {NO_DTYPE}"),
    "float8": (as_dtype(torch.float8_e4m3fn), f"tensor {QUERY} in {SINGLE} has dtype F8_E4M3; {NO_DTYPE}"),
    "float64": (as_dtype(torch.float64), f"tensor {QUERY} in {SINGLE} has dtype F64; {NO_DTYPE}"),
    "mixed dtypes": (as_dtype(torch.float16), "have different dtypes"),
}


def index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def edit(model: Path) -> None:
        weight_map = json.loads((model / INDEX).read_text())["weight_map"]
        change(weight_map)
        edit_json(model / INDEX, weight_map=weight_map)

    return edit


def first_shard(model: Path) -> Path:
    return min(model.glob("model-*.safetensors"))


def moved_tensor(model: Path) -> None:
    edit_tensors(first_shard(model), lambda held: held.pop(min(held)))


def tensor_held_twice(model: Path) -> None:
    _, second, *_ = sorted(model.glob("model-*.safetensors"))
    edit_tensors(second, lambda held: held.update({"model.embed_tokens.weight": torch.ones(1)}))


NORM = "model.norm.weight"
INDEX_FAULTS: dict[str, Fault] = {
    "shard missing": (lambda model: first_shard(model).unlink(), ".safetensors does not exist; download the model"),
    "shard cut": (lambda model: truncate(first_shard(model), 0.9), ".safetensors is damaged or truncated"),
    "names no file": (index(lambda to: to.update({NORM: "nowhere.safetensors"})), "nowhere.safetensors does not exist"),
    "leads out": (
        index(lambda to: to.update({NORM: "../other/model.safetensors"})),
        f"{INDEX} names '../other/model.safetensors' as a file of the model; only .safetensors files beside it are",
    ),
    "absolute": (index(lambda to: to.update({NORM: "/etc/passwd.safetensors"})), "names '/etc/passwd.safetensors' as"),
    "pickle": (index(lambda to: to.update({NORM: "pytorch_model.bin"})), "names 'pytorch_model.bin' as a file of"),
    "not a name": (index(lambda to: to.update({NORM: ["model.safetensors"]})), "names ['model.safetensors'] as a file"),
    "no map": (lambda model: edit_json(model / INDEX, weight_map=None), f"{INDEX} has no weight_map"),
    "not json": (lambda model: truncate(model / INDEX, 0.5), f"{INDEX} is not readable JSON"),
    "lfs pointer": (lambda model: (model / INDEX).write_text(LFS_POINTER), f"{INDEX} is a Git LFS pointer"),
    "empty promise": (moved_tensor, "which does not hold it"),
    "unknown tensor": (
        index(lambda to: to.update({"model.layers.9.x": min(to.values())})),
        f"{INDEX} promises the tensor model.layers.9.x in model-00001-of-",
    ),
    "held twice": (tensor_held_twice, "both hold the tensor model.embed_tokens.weight"),
    "two models": (
        lambda model: shutil.copy(first_shard(model), model / SINGLE),
        f"holds two models, {SINGLE} and the files that {INDEX} lists; move one away",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_file(fault, hf_models, tmp_path, capsys):
    assert_damage_refused("import", hf_models["mistral"], FAULTS[fault], tmp_path, capsys)


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_several_files(fault, hf_models, tmp_path, capsys):
    assert_damage_refused("import", hf_models["qwen2-untied-bf16"], INDEX_FAULTS[fault], tmp_path, capsys)


def test_linked_files_are_read(hf_models, tmp_path):
    """Its snapshots link into a store of blobs."""
    from nemo_longpo.conversion.huggingface.directory import HfDirectory
    from nemo_longpo.conversion.huggingface.weights import HfWeights

    blobs = shutil.copytree(hf_models["qwen2-untied-bf16"], tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../blobs/{file.name}")
    found, expected = (HfWeights(HfDirectory.open(path)) for path in (snapshot, hf_models["qwen2-untied-bf16"]))
    assert found.listing() == expected.listing()
