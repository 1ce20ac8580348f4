"""Fake servers, and engines that ask them."""

import json

import pytest
from support.fake_vllm import VOCAB_SIZE, FakeVllm

from nemo_longpo.data_tools.engines.server import ServerEngine
from nemo_longpo.data_tools.engines.server_pool import Pauses
from nemo_longpo.data_tools.settings import EngineSettings, ServerSettings


@pytest.fixture
def servers():
    """Start fake servers; stop them after the test."""
    started = []

    def start(count=1, **options):
        started.extend(FakeVllm(**options) for _ in range(count))
        return started[-count:]

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def served_model(tmp_path):
    content = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def load(served_model):
    def make(*servers, first_pause=0.01, **settings):
        urls = tuple(server if isinstance(server, str) else server.url for server in servers)
        return ServerEngine(
            served_model,
            EngineSettings(),
            ServerSettings(base_url=urls, **settings),
            Pauses(first_pause, max(first_pause, 0.05)),
        )

    return make
