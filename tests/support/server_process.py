"""A real vLLM server on loopback, in its own process group; it can be started, killed and restarted."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

from support.free_ports import free_port

# Without chunked prefill, because vLLM on CPU crashes on a seeded request whose prompt it reads in pieces.
_OPTIONS = {
    "--dtype": "float32",
    "--max-model-len": "1024",
    "--max-num-batched-tokens": "4096",
    "--max-num-seqs": "8",
    "--kv-cache-memory-bytes": str(256 << 20),
}
_FLAGS = ["--enforce-eager", "--no-enable-chunked-prefill", "--enable-prompt-tokens-details"]
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on CPU, one process less to start
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


class ServerProcess:
    """Serves the model of a directory on a port that stays the same over restarts. Use as `with`."""

    def __init__(self, model: Path, log: Path):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._model, self._log = model, log

    def __enter__(self) -> "ServerProcess":
        self.start()
        self.wait_until_it_answers()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        words = [word for option in _OPTIONS.items() for word in option]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port), *words, *_FLAGS],
                env=os.environ | _ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_it_answers(self, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self._process.poll() is None, self._log.read_text()[-5000:]
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5):
                    return
            except (URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"no answer after {seconds:.0f} s:\n{self._log.read_text()[-5000:]}")

    def finished(self) -> int:
        """Return the number of completions sent since the first start."""
        return self._log.read_text(errors="replace").count('"POST /v1/completions HTTP/1.1" 200')

    def kill(self) -> None:
        """SIGKILL for the server and the processes of its engine."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
