"""Settings that must hold before any test imports torch or tokenizers."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from support.worker_pool import WorkerPool


@pytest.fixture(scope="session")
def workers():
    """Four processes that import torch and NeMo once, for all tests that start distributed jobs."""
    pool = WorkerPool(4)
    yield pool
    pool.close()
