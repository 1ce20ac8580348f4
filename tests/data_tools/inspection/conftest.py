"""A model directory whose tokenizer is byte-level, and shards made with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_models import save_tiny
from support.told_shards import Told, write_told

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.data_tools.model import load_chat


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "qwen2")


@pytest.fixture(scope="session")
def chat(model) -> ChatFormat:
    return load_chat(model)


@pytest.fixture
def write(chat, tmp_path) -> Callable[..., Path]:
    def write_shards(*documents: Told) -> Path:
        return write_told(tmp_path / "shards", chat, *documents)

    return write_shards
