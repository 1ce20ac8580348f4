"""Which files of a model directory travel with its weights."""

import os

import pytest

from nemo_longpo.conversion.huggingface.directory import LARGEST_COMPANION, HfDirectory
from nemo_longpo.errors import InputError

TRAVEL = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "merges.txt", "vocab.json", "tokenizer.model", "tokenizer.model.v3"),
    *("tekken.json", "model.safetensors.index.json", "LICENSE", "NOTICE.md", "USE_POLICY.md", "qwen.tiktoken"),
}
STAY = {
    *("model-00001-of-00002.safetensors", "consolidated.safetensors", "params.json", "pytorch_model.bin"),
    *("pytorch_model.bin.index.json", "consolidated.safetensors.index.json", "tf_model.h5", "model.Q4_K_M.gguf"),
    *("model.onnx", "flax_model.msgpack", "optimizer.pt", "consolidated.00.pth", "README.md", "README_de.md"),
    *(".gitattributes", "modeling_mistral.py", "loss.PNG"),
}


@pytest.fixture
def model(tmp_path):
    """As in the Hub's cache: names are links to contents."""
    directory, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    directory.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(sorted(TRAVEL | STAY)):
        (blobs / str(number)).write_text(f"contents of {name}")
        (directory / name).symlink_to(f"../../blobs/{number}")
    (directory / "original").mkdir()
    (directory / "original" / "tokenizer.model").touch()
    return directory


def test_companions_are_copied(model, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()
    HfDirectory.open(model).copy_companions(target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        name: f"contents of {name}" for name in TRAVEL
    }
    assert not any(path.is_symlink() for path in target.iterdir())


def test_named_chat_templates_are_kept(model):
    (model / "additional_chat_templates").mkdir()
    with pytest.raises(InputError, match="additional_chat_templates holds named chat templates"):
        HfDirectory.open(model).companions()


def test_broken_link_is_refused(model):
    (model / "tokenizer_config.json").resolve().unlink()
    with pytest.raises(InputError, match=r"tokenizer_config\.json is a link to .*, which does not exist"):
        HfDirectory.open(model).companions()


def test_large_companion_is_refused(model):
    with (model / "corpus.txt").open("wb") as file:
        os.truncate(file.fileno(), LARGEST_COMPANION + 1)
    with pytest.raises(InputError, match=r"corpus\.txt has 100 MB, and files beside the weights are copied"):
        HfDirectory.open(model).companions()
