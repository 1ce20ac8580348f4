"""Another process that holds the lock of a file, as a run at work does."""

import subprocess
import sys
from pathlib import Path

_HOLD = """import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(lock: Path, seconds: float = 0.0) -> "subprocess.Popen[bytes]":
    """A process that holds a lock so long, or ends at once with status 1 if it cannot."""
    words = [sys.executable, "-SE", "-c", _HOLD, str(lock), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
