"""What one step of this process takes: seconds, CPU seconds and peak memory. Linux; standard library only."""

import time
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Measures memory above what the process held when the meter was made.

    Make it when all libraries are loaded and before there is a model.
    """

    def __init__(self) -> None:
        self.idle = _resident("VmRSS")

    def start(self) -> None:
        _CLEAR.write_text("5")  # the kernel forgets its peak; proc(5)
        self._clocks = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        """Since `start`: seconds, CPU seconds of all threads, and the peak in MB (10⁶ bytes) above the idle process."""
        wall, cpu = time.perf_counter() - self._clocks[0], time.process_time() - self._clocks[1]
        return {"seconds": wall, "cpu_seconds": cpu, "peak_mb": (_resident("VmHWM") - self.idle) / 1e6}


def _resident(name: str) -> int:
    """VmRSS (now) or VmHWM (peak), in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
