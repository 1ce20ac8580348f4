"""Worker processes that import NeMo once and then run one distributed job after another over gloo."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

JOB_TIMEOUT_SECONDS = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _serve(rank: int, connection) -> None:
    import torch

    torch.set_num_threads(1)
    # As in a process that trains; by spawn, as this one was started, workers that load data would import NeMo first.
    multiprocessing.set_start_method("fork", force=True)
    while (job := connection.recv()) is not None:
        function, world_size, port, kwargs = job
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        try:
            connection.send((True, function(**kwargs)))
        except Exception:
            connection.send((False, traceback.format_exc()))


class WorkerPool:
    """`size` processes; `run` gives a job to the first of them.

    A worker that fails or hangs ends them all; the next job then starts others.
    """

    def __init__(self, size: int):
        self._size = size
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(self._size)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, theirs)) for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()

    def run(self, function: Callable[..., Any], world_size: int, **kwargs: Any) -> list[Any]:
        """Call a module's `function(**kwargs)` on ranks 0 .. world_size − 1; returns their results.

        Workers get the function's name and import its module, which must not import NeMo but inside of functions:
        tests import it too.

        Raises:
            AssertionError: with the first failing rank's traceback, or because a rank was killed or did not answer.
        """
        if not self._processes:
            self._start()
        port, ranks = free_port(), range(world_size)
        for rank in ranks:
            self._connections[rank].send((function, world_size, port, kwargs))
        results: dict[int, Any] = {}
        pending = {self._connections[rank]: rank for rank in ranks}
        while pending:
            ready = multiprocessing.connection.wait(pending, timeout=JOB_TIMEOUT_SECONDS)
            if not ready:
                self.close()
                raise AssertionError(
                    f"ranks {sorted(pending.values())} of {function.__name__}({kwargs}) did not answer"
                )
            for connection in ready:
                rank = pending.pop(connection)
                try:
                    succeeded, results[rank] = connection.recv()
                except EOFError:
                    self.close()
                    raise AssertionError(f"rank {rank} of {function.__name__} was killed") from None
                if not succeeded:
                    self.close()
                    raise AssertionError(f"rank {rank} of {function.__name__} failed:\n{results[rank]}")
        return [results[rank] for rank in ranks]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []
