"""Fixtures of the tests of Megatron-Bridge. Without Bridge, the files of this folder are skipped with a reason."""

import pytest
from support.bridge_runs import Inputs
from support.prepared_process import PreparedProcess, import_bridge
from support.workbench import Workbench, make_reference, make_workbench
from support.worker_pool import WorkerPool

from nemo_longpo import trainers

MISSING = not trainers.is_installed("megatron.bridge")


class SkippedFile(pytest.File):
    """A file whose imports would fail."""

    def collect(self):
        pytest.skip("needs Megatron-Bridge, which has an environment of its own: make test-bridge")


def pytest_pycollect_makemodule(module_path, parent):
    return SkippedFile.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def bridge_process():
    """The process that has imported Bridge, for all that must not do it again."""
    process = PreparedProcess(import_bridge)
    yield process
    process.close()


@pytest.fixture(scope="session")
def workers(bridge_process):
    """Four ranks for all tests that start distributed jobs."""
    pool = WorkerPool(bridge_process, 4)
    yield pool
    pool.close()


@pytest.fixture(scope="session", params=["mistral", "qwen2", "qwen3", "llama"])
def workbench(request, tmp_path_factory) -> Workbench:
    """Training starts from the Hugging Face directory."""
    return make_workbench(tmp_path_factory.mktemp(request.param), request.param, form=None)


@pytest.fixture(scope="module")
def reference(workbench):
    return make_reference(workbench)


@pytest.fixture(scope="session")
def bridge_programs(bridge_process, tmp_path_factory):
    """A folder with a `python` that has imported Bridge already: seven seconds of processor time less, each time."""
    return bridge_process.write_programs(tmp_path_factory.mktemp("programs") / "bin")


@pytest.fixture(scope="session")
def mistral(tmp_path_factory):
    return Inputs.write(tmp_path_factory.mktemp("mistral"), "mistral")
