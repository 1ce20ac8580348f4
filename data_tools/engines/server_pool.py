"""Distribute requests over several servers of one model, and handle lost servers.

All of it runs in one thread, so nothing else happens between two `await`s.
"""

import asyncio
import hashlib
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.terminal import printable

from ..settings import ServerSettings
from .server_http import Address, ServedModel, ServerFailure, ask_completion, ask_model, open_client

_AGAIN = "then run the same command again (finished parts are kept)"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pauses:
    """Seconds to wait after a failure. They double with every further one, and are drawn from the upper half, so that
    many requests do not return at the same moment. A server may ask for a longer pause, up to a limit."""

    first: float = 1.0
    longest: float = 30.0
    longest_asked_for: float = 300.0

    def after(self, failures: int) -> float:
        return min(self.first * 2.0 ** min(failures - 1, 30), self.longest) * random.uniform(0.5, 1.0)


class _Server:
    """The state of one server. It counts as lost until it has reported which model it serves."""

    def __init__(self, address: Address, concurrency: int):
        self.address = address
        self.url = address.url
        self.slots = asyncio.Semaphore(concurrency)
        self.lost = True
        self.failures = 0  # since its last answer to a request
        self.next_look = 0.0  # on the monotonic clock; infinite while a check is running
        self.trouble = ""


class ServerPool:
    """Servers of one model. Use inside one event loop with `async with`, and call `connect` first. Without `model`, all
    must serve the model that is reported first."""

    def __init__(
        self, addresses: Sequence[Address], settings: ServerSettings, pauses: Pauses, model: ServedModel | None = None
    ):
        self._servers = [_Server(address, settings.concurrency) for address in addresses]
        self._settings = settings
        self._pauses = pauses
        self._model = model
        self._client = open_client(settings.timeout)

    async def __aenter__(self) -> "ServerPool":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def connect(self) -> ServedModel:
        """Ask every server for its model, and wait until one has answered. Raises InputError if none does."""
        await asyncio.gather(*(self._look(server) for server in self._servers))
        await self._first_living(self._servers)
        assert self._model is not None
        return self._model

    async def complete(self, body: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
        """Send a completion request for one prompt; return the parsed answer and the URL that sent it.

        Requests with the same key go to the same server while it lives. Raises InputError if a server refuses the
        request, if it failed more than `retries` times, or if all servers are lost.
        """
        order = sorted(self._servers, key=lambda server: _weight(server.url, key))
        failures = 0
        while True:
            server = await self._first_living(order)
            async with server.slots:
                if await self._first_living(order) is not server:
                    continue  # a server was lost or came back while this request waited for its turn
                try:
                    answer = await ask_completion(self._client, server.address, body, self._settings.timeout)
                    server.failures = 0
                    return answer, server.url
                except ServerFailure as failure:
                    failures += 1
                    # Requests that fail together are one failure of the server.
                    if not server.lost:
                        self._lose(server, failure)
                    if failures > self._settings.retries:
                        raise InputError(
                            f"a request of {len(body['prompt'])} tokens failed {failures} times, the last time at "
                            f"{server.url} ({failure}); see the server's log, {_AGAIN}"
                        ) from failure
            await asyncio.sleep(self._pauses.after(failures))

    async def _first_living(self, order: Sequence[_Server]) -> _Server:
        """Return the first server that is not lost; wait while all are. Raises InputError if none comes back."""
        while True:
            for server in order:
                if not server.lost or (time.monotonic() >= server.next_look and await self._look(server)):
                    return server
            if all(server.failures > self._settings.retries for server in self._servers):
                found = "; ".join(f"{server.url}: {server.trouble}" for server in self._servers)
                raise InputError(f"no server answers ({found}); start the servers or correct --base-url, {_AGAIN}")
            wait = min(server.next_look for server in self._servers) - time.monotonic()
            await asyncio.sleep(min(max(wait, 0.01), self._pauses.first))

    async def _look(self, server: _Server) -> bool:
        """Ask a lost server for its model, to see whether it is back. Raises InputError if it serves another one."""
        server.next_look = math.inf
        try:
            model = await ask_model(self._client, server.address)
        except ServerFailure as failure:
            self._lose(server, failure)
            return False
        self._model = self._model or model
        if model != self._model:
            raise InputError(
                f"{server.url} serves {model.name} with max_model_len {model.max_length}, where "
                f"{self._model.name} with {self._model.max_length} is expected; all servers must serve the same "
                "model in the same way"
            )
        if server.failures:
            log.warning("%s answers again", server.url)
        server.lost = False
        return True

    def _lose(self, server: _Server, failure: ServerFailure) -> None:
        server.lost = True
        server.failures += 1
        server.trouble = str(failure)
        wait = max(self._pauses.after(server.failures), min(failure.wait, self._pauses.longest_asked_for))
        server.next_look = time.monotonic() + wait
        log.warning("%s: %s; next try in %.0f s", server.url, printable(failure), wait)


def _weight(url: str, key: str) -> bytes:
    """Return the rendezvous hash: every key orders the servers its own way; losing one moves only its own keys."""
    return hashlib.sha256(f"{url} {key}".encode()).digest()
