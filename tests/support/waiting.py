"""Waiting for what other threads and processes do: for an event, not for a time."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 300  # how long tests wait before they fail; a busy machine may take as long as it likes


def wait_until(happened: Callable[[], Any]) -> Any:
    """Return the first true value of `happened()`."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (value := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value
