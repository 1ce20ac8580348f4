"""One exchange with one of vLLM's OpenAI-compatible servers: what is asked, and which answers mean "try again"."""

import os
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from nemo_longpo.errors import InputError

_CONNECT_SECONDS = 10.0
_TRY_AGAIN = (408, 429)


@dataclass(frozen=True)
class ServedModel:
    """What a server says of its model. `max_length` counts tokens, answer included."""

    name: str
    max_length: int


class ServerFailure(Exception):
    """A request that may succeed when it is sent again, but not before `wait` seconds have passed."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def api_url(text: str) -> str:
    """A server's address with `/v1` and without a slash at the end. Raises InputError if it is no http address."""
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise InputError(f"base_url {text!r} is no address of a server; write it like http://127.0.0.1:8000/v1")
    return url if url.endswith("/v1") else f"{url}/v1"


def open_client(timeout: float) -> httpx.AsyncClient:
    """A client whose requests may take `timeout` seconds; the number of connections is the caller's to limit.

    Raises InputError if the key in the environment cannot be sent.
    """
    key = (os.environ.get("LONGPO_API_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("the key in LONGPO_API_KEY or OPENAI_API_KEY holds characters that no header can carry")
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None),
        # Idle connections are closed here before vLLM does it after 5 s, or a request could meet a closing one.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=3.0),
    )


async def ask_model(client: httpx.AsyncClient, url: str) -> ServedModel:
    """GET /v1/models: the base model, which comes before its adapters. Raises ServerFailure or InputError."""
    answer = _json(await _send(client, "GET", f"{url}/models", timeout=_CONNECT_SECONDS))
    models = answer.get("data") if isinstance(answer, dict) else None
    first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
    name, length = first.get("id"), first.get("max_model_len")
    if not isinstance(name, str) or not isinstance(length, int):
        raise InputError(f"{url}/models does not state a model and its max_model_len; the server must be vLLM's")
    return ServedModel(name, length)


async def ask_completion(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST /v1/completions for one prompt; returns the parsed answer. Raises ServerFailure or InputError."""
    answer = _json(await _send(client, "POST", f"{url}/completions", json=body))
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise InputError(f"{url}/completions does not answer as vLLM's does; check --base-url")
    if choices[0].get("finish_reason") == "abort":
        raise ServerFailure("the server gave the request up, as it does when it shuts down")
    return answer


async def _send(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response:
    try:
        response = await client.request(method, url, **options)
    except httpx.TimeoutException as error:
        raise ServerFailure(f"no answer within the time-out ({type(error).__name__})") from error
    except httpx.TransportError as error:
        raise ServerFailure(str(error) or type(error).__name__) from error
    status = response.status_code
    if status in _TRY_AGAIN or status >= 500:
        raise ServerFailure(f"status {status}: {_message(response)}", _retry_after(response))
    if status in (401, 403):
        raise InputError(f"{url} refuses access (status {status}); put the server's key into LONGPO_API_KEY")
    if status != 200:
        raise InputError(f"{url} refuses the request (status {status}): {_message(response)}")
    return response


def _json(response: httpx.Response) -> Any:
    """The parsed content; None if it is not JSON."""
    try:
        return response.json()
    except ValueError:
        return None


def _message(response: httpx.Response) -> str:
    """The server's own words, in the shapes that vLLM, FastAPI and proxies give them."""
    content = _json(response)
    found = content.get("error", content) if isinstance(content, dict) else None
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail")
    return " ".join(str(found or response.text or response.reason_phrase).split())[:500]


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, which it gives as a number or as a date; 0 if it asks for nothing."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
