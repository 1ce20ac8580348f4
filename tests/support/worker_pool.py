"""Ranks that are forked once and then run one distributed job after another over gloo."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from support.free_ports import free_port
from support.prepared_process import PreparedProcess

JOB_TIMEOUT_SECONDS = 240


def serve(rank: int, connection: Connection) -> None:
    import torch

    torch.set_num_threads(1)
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
    """`size` ranks forked from `parent`; `run` gives a job to the first of them.

    A worker that fails or hangs ends them all; the next job then starts others.
    """

    def __init__(self, parent: PreparedProcess, size: int):
        self._parent, self._size = parent, size
        self._lives: list[socket.socket] = []
        self._connections: list[Connection] = []

    def _start(self) -> None:
        for rank in range(self._size):
            ours, theirs = multiprocessing.Pipe()
            with theirs:
                self._lives.append(self._parent.ask("rank", [theirs.fileno()], rank=rank))
            self._connections.append(ours)

    def run(self, function: Callable[..., Any], world_size: int, **kwargs: Any) -> list[Any]:
        """Call a module's `function(**kwargs)` on ranks 0 .. world_size − 1; returns their results.

        Workers get the function's name and import its module, which must not import NeMo but inside of functions:
        tests import it too.

        Raises:
            AssertionError: with the first failing rank's traceback, or because a rank was killed or did not answer.
        """
        if not self._connections:
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
        """Kill the workers, and wait for their end."""
        for life in self._lives:
            with suppress(OSError):
                life.shutdown(socket.SHUT_WR)
        for life in self._lives:
            while life.recv(64):
                pass
            life.close()
        for connection in self._connections:
            connection.close()
        self._lives, self._connections = [], []
