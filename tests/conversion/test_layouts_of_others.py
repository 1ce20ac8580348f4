"""Safetensors headers and indices of other programs are kept if the tensors that they describe are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.conversion_cases import files

from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.huggingface.directory import INDEX, SINGLE
from nemo_longpo.conversion.importer import import_checkpoint
from nemo_longpo.conversion.nemo_checkpoint.context import HEADERS
from nemo_longpo.errors import InputError

SEVERAL = "qwen2-untied-bf16"


def read_header(file: Path) -> tuple[dict, bytes]:
    """Return the header and the tensors' bytes after it."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def write_header(file: Path, header: dict, tensors: bytes, **layout: object) -> None:
    encoded = json.dumps(header, **layout).encode()  # type: ignore[arg-type]
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + tensors)


def metadata_of_its_own(file: Path) -> None:
    header, tensors = read_header(file)
    header["__metadata__"] = {"format": "pt", "model": "ünï", "step": "7"}
    write_header(file, header, tensors)


def no_metadata(file: Path) -> None:
    header, tensors = read_header(file)
    del header["__metadata__"]
    write_header(file, header, tensors)


def other_order_of_entries(file: Path) -> None:
    header, tensors = read_header(file)
    write_header(file, dict(reversed(header.items())), tensors, separators=(",", ":"))


def other_order_of_tensors(file: Path) -> None:
    """As tensors lie in the file, too: from the last to the first."""
    header, tensors = read_header(file)
    moved, end = b"", 0
    for entry in reversed([entry for name, entry in header.items() if name != "__metadata__"]):
        start, stop = entry["data_offsets"]
        moved += tensors[start:stop]
        entry["data_offsets"] = [end, end + stop - start]
        end += stop - start
    write_header(file, header, moved)


HEADER_EDITS = (metadata_of_its_own, no_metadata, other_order_of_entries, other_order_of_tensors)


@pytest.fixture
def model(hf_models, tmp_path) -> Path:
    return shutil.copytree(hf_models[SEVERAL], tmp_path / "model")


@pytest.mark.parametrize("edit", HEADER_EDITS)
def test_headers_come_back_byte_for_byte(edit, model, tmp_path):
    edit(sorted(model.glob("*.safetensors"))[1])
    back = export_checkpoint(import_checkpoint(model, tmp_path / "nemo"), tmp_path / "back")
    assert files(back) == files(model)


def test_library_headers_are_not_stored(model, tmp_path):
    checkpoint = import_checkpoint(model, tmp_path / "nemo")
    assert not (checkpoint / "context" / "hf" / HEADERS).exists()
    metadata_of_its_own(first := sorted(model.glob("*.safetensors"))[0])
    checkpoint = import_checkpoint(model, tmp_path / "other")
    assert list(json.loads((checkpoint / "context" / "hf" / HEADERS).read_text())) == [first.name]


def test_base_keeps_its_headers(model, nemo_checkpoints, tmp_path):
    """A checkpoint of stock NeMo holds nothing of them."""
    stock = shutil.copytree(nemo_checkpoints[SEVERAL], tmp_path / "stock")
    shutil.rmtree(stock / "context" / "hf")
    other_order_of_tensors(sorted(model.glob("*.safetensors"))[0])
    assert files(export_checkpoint(stock, tmp_path / "back", base=model)) == files(model)


def test_metadata_stays_where_the_dtype_changes(hf_models, tmp_path):
    model = shutil.copytree(hf_models["mistral"], tmp_path / "model")
    metadata_of_its_own(model / SINGLE)
    checkpoint = import_checkpoint(model, tmp_path / "nemo")
    back = export_checkpoint(checkpoint, tmp_path / "back", dtype="bfloat16")
    with safe_open(back / SINGLE, "pt") as file:
        assert file.metadata() == {"format": "pt", "model": "ünï", "step": "7"}
    original = load_file(model / SINGLE)
    assert all(torch.equal(found, original[name].bfloat16()) for name, found in load_file(back / SINGLE).items())


def test_header_of_other_tensors_is_ignored(hf_models, nemo_checkpoints, tmp_path):
    """Places that leave a gap, or overlap, would write one tensor over another."""
    checkpoint = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "nemo")
    header, _ = read_header(hf_models["mistral"] / SINGLE)
    header["model.norm.weight"]["data_offsets"] = [0, 256]
    (checkpoint / "context" / "hf" / HEADERS).write_text(json.dumps({SINGLE: json.dumps(header)}))
    back = export_checkpoint(checkpoint, tmp_path / "back")
    assert files(back) == files(hf_models["mistral"])


def test_a_kept_header_that_is_damaged(nemo_checkpoints, tmp_path):
    checkpoint = shutil.copytree(nemo_checkpoints["mistral"], tmp_path / "nemo")
    (checkpoint / "context" / "hf" / HEADERS).write_text(json.dumps({SINGLE: "{"}))
    with pytest.raises(InputError, match=r"longpo_headers.json, model.safetensors is not readable JSON"):
        export_checkpoint(checkpoint, tmp_path / "back")
    assert not (tmp_path / "back").exists()


INDEX_EDITS: dict[str, Callable[[dict], str]] = {
    "metadata null": lambda index: json.dumps(index | {"metadata": None}),
    "no metadata": lambda index: json.dumps({"weight_map": index["weight_map"]}),
    "metadata of another kind": lambda index: json.dumps(index | {"metadata": ["pt"]}),
    "more metadata": lambda index: json.dumps(index | {"metadata": {"total_parameters": 7, **index["metadata"]}}),
    "another total": lambda index: json.dumps(index | {"metadata": {"total_size": 1}}),
    "another order": lambda index: json.dumps(
        {"weight_map": dict(reversed(index["weight_map"].items())), "more": [None], "metadata": index["metadata"]}
    ),
}


@pytest.mark.parametrize("name", INDEX_EDITS)
def test_indices_come_back_byte_for_byte(name, model, tmp_path):
    index = model / INDEX
    index.write_text(INDEX_EDITS[name](json.loads(index.read_text())))
    back = export_checkpoint(import_checkpoint(model, tmp_path / "nemo"), tmp_path / "back")
    assert files(back) == files(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", INDEX_EDITS)
def test_another_dtype_changes_the_total_alone(name, model, tmp_path):
    index = model / INDEX
    index.write_text(INDEX_EDITS[name](original := json.loads(index.read_text())))
    checkpoint = import_checkpoint(model, tmp_path / "nemo")
    back = export_checkpoint(checkpoint, tmp_path / "back", dtype="float32")
    total = 2 * original["metadata"]["total_size"]
    before, after = json.loads(index.read_text()), json.loads((back / INDEX).read_text())
    metadata = before.get("metadata")
    expected = {**metadata, "total_size": total} if isinstance(metadata, dict) else {"total_size": total}
    assert after == before | {"metadata": expected}
    assert list(after["weight_map"].items()) == list(before["weight_map"].items())
