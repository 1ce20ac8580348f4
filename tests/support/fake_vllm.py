"""A server that answers like vLLM's as a function of the prompt, with faults on demand: for tests without vLLM."""

import json
import random
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

VOCAB_SIZE = 500
STOP = 2


@dataclass(frozen=True)
class Fault:
    """A fault of one completion request or of its answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    seconds: float = 0.0
    trickle: float = 0.0  # seconds between the bytes of the answer
    edit: Callable[[dict[str, Any]], Any] | None = None
    words: str = "the server's own words"


def written(prompt: list[int], max_tokens: int) -> tuple[list[int], str]:
    """The answer to a prompt, stop token included, and its finish reason."""
    draw = random.Random(str(prompt))
    ids = [draw.randrange(STOP + 1, VOCAB_SIZE) for _ in range(max_tokens)]
    length = draw.randrange(2 * max_tokens)
    return ([*ids[:length], STOP], "stop") if length < max_tokens else (ids, "length")


def logp(prompt: list[int], position: int) -> float:
    return -random.Random(str(prompt[: position + 1])).random()


class FakeVllm:
    """Listens on 127.0.0.1. `faults` are used up by the next completion requests, `on_request` gets every one
    with its number, from 1 on."""

    path = "/v1/completions"

    def __init__(self, *, name: str = "tiny", max_model_len: int | None = 4096, seconds: float = 0.0):
        self.name, self.max_model_len, self.seconds = name, max_model_len, seconds
        self.faults: deque[Fault] = deque()
        self.on_request: Callable[[dict[str, Any], int], None] = lambda body, number: None
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str | None] = set()
        self.in_flight = self.most_in_flight = 0
        self.lock = Lock()
        self.connections: set[socket.socket] = set()
        self.cut = 0  # answers that nobody has waited for to their end
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Also after `kill`, on the same port."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), type("Bound", (_Handler,), {"fake": self}))
        self._port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self) -> None:
        """Close the port and break every connection."""
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            for connection in self.connections:
                with suppress(OSError):  # the client was quicker
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        ids, reason = written(prompt, body["max_tokens"])
        stopped = next((at for at, token in enumerate(ids) if token in body.get("stop_token_ids", ())), None)
        if stopped is not None:
            ids, reason = ids[: stopped + 1], "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "prompt_logprobs": None}
        if body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        if "prompt_logprobs" in body:
            entries = [{str(prompt[at]): {"logprob": logp(prompt, at), "rank": 1}} for at in range(1, len(prompt))]
            choice["prompt_logprobs"] = [None, *entries]
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": 3}}
        return {"choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVllm
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.fake.lock:
            self.fake.connections.add(self.connection)

    def finish(self) -> None:
        with self.fake.lock:
            self.fake.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._answer({"detail": "Not Found"}, 404)
        self.fake.keys.add(self.headers.get("Authorization"))
        model = {"id": self.fake.name, "max_model_len": self.fake.max_model_len, "parent": None}
        self._answer({"data": [model, {"id": "an adapter", "parent": self.fake.name}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake = self.fake
        if self.path != fake.path:
            return self._answer({"detail": "Not Found"}, 404)
        fake.keys.add(self.headers.get("Authorization"))
        with fake.lock:
            fake.bodies.append(body)
            fake.times.append(time.monotonic())
            number = len(fake.bodies)
            fake.in_flight += 1
            fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
        fake.on_request(body, number)
        with fake.lock:
            fault = fake.faults.popleft() if fake.faults else Fault()
        time.sleep(fake.seconds + fault.seconds)
        with fake.lock:
            fake.in_flight -= 1
        if fault.drop:
            self.close_connection = True
        elif fault.status != 200:
            self._answer({"error": {"message": fault.words}}, fault.status, fault.headers)
        else:
            answer = fake.complete(body)
            self._answer(fault.edit(answer) or answer if fault.edit else answer, trickle=fault.trickle)

    def _answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None, trickle: float = 0.0
    ) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for start in range(0, len(text), 1 if trickle else len(text)):
                self.wfile.write(text[start : start + 1] if trickle else text)
                time.sleep(trickle)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has gone
            self.fake.cut += 1

    def log_message(self, *_: object) -> None:
        pass
