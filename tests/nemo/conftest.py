"""Fixtures of the training tests: per family a small model, its checkpoint and its shards."""

import pytest
from support.workbench import Workbench, make_reference, make_workbench


@pytest.fixture(scope="session", params=["mistral", "qwen2", "qwen3", "llama"])
def workbench(request, tmp_path_factory) -> Workbench:
    return make_workbench(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def reference(workbench):
    return make_reference(workbench)
