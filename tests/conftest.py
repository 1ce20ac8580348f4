"""Settings that must hold before any test imports torch or tokenizers."""

import atexit
import gc
import io
import logging
import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# In a shell's background processes ignore Ctrl-C, and so do those that they start; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Imports leave a million objects that stay to the end: the collector need not look at them all the time, nor at exit.
gc.set_threshold(50_000, 10, 100)
atexit.register(gc.freeze)

import pytest
import torch
from support.prepared_process import PreparedProcess, import_core, import_nemo, import_nothing
from support.worker_pool import WorkerPool

from nemo_longpo import trainers

CORE16 = Path(__file__).parent.with_name(".core16")


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` if there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _new_process(overlay: Path | None = None) -> PreparedProcess:
    prepare = import_nemo if trainers.is_installed("nemo") else import_core
    if torch.cuda.is_available():
        prepare = import_nothing
    return PreparedProcess(prepare, overlay=None if overlay is None else str(overlay))


@pytest.fixture(scope="session")
def nemo_process():
    """The process that has imported NeMo, for all that must not do it again; Megatron-Core where there is no NeMo."""
    process = _new_process()
    yield process
    process.close()


@pytest.fixture(scope="session")
def core16_process():
    """Another one, whose Megatron-Core is 0.16."""
    if not CORE16.is_dir() or not trainers.is_installed("nemo"):
        pytest.skip("`make core16` installs Megatron-Core 0.16 beside 0.15")
    process = _new_process(CORE16)
    yield process
    process.close()


@pytest.fixture(scope="session")
def programs(nemo_process, tmp_path_factory):
    """A folder with `longpo`, `nemo` and `python` that need no import of NeMo."""
    return nemo_process.write_programs(tmp_path_factory.mktemp("programs") / "bin")


@pytest.fixture(scope="session")
def workers(nemo_process):
    """Four ranks for all tests that start distributed jobs."""
    pool = WorkerPool(nemo_process, 4)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def core16_workers(core16_process):
    pool = WorkerPool(core16_process, 4)
    yield pool
    pool.close()


@pytest.fixture
def logged():
    """All that is logged meanwhile, at every level. Instead of pytest's `caplog`, which is switched off in
    pyproject.toml: with NeMo come thousands of loggers, and it asks every one of them six times a test.
    """
    root, said = logging.getLogger(), io.StringIO()
    handler, level = logging.StreamHandler(said), root.level
    root.addHandler(handler)
    root.setLevel(logging.NOTSET)
    yield said
    root.removeHandler(handler)
    root.setLevel(level)
