"""Models for tests of the real vLLM. Without vLLM, nothing in this folder is collected."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

_FOUND = find_spec("vllm")
# Without the library, this folder itself answers to that name, as a package without a file.
if _FOUND is None or _FOUND.origin is None:
    collect_ignore_glob = ["test_*.py"]

_MODELS = Path(os.environ.get("LONGPO_VLLM_MODELS", Path(__file__).parents[2] / ".venv-vllm" / "models"))


@pytest.fixture(scope="session")
def mistral():
    return _MODELS / "mistral"


@pytest.fixture(scope="session")
def qwen2():
    return _MODELS / "qwen2"


@pytest.fixture(scope="session")
def exported():
    return _MODELS / "exported"
