"""Settings that must hold before any test imports torch or tokenizers."""

import atexit
import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# In a shell's background processes ignore Ctrl-C, and so do those that they start; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Imports leave a million objects that stay to the end: the collector need not look at them all the time, nor at exit.
gc.set_threshold(50_000)
atexit.register(gc.freeze)

import pytest
import torch
from support.worker_pool import WorkerPool


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` if there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def workers():
    """Four processes that import torch and NeMo once, for all tests that start distributed jobs."""
    pool = WorkerPool(4)
    yield pool
    pool.close()
