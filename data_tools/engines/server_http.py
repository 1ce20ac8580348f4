"""One HTTP exchange with one of vLLM's OpenAI-compatible servers: the request, and which answers mean "try again"."""

import asyncio
import os
import re
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import parse_json

_CONNECT_SECONDS = 10.0
_CERTIFICATES = httpx.create_ssl_context()  # once: reading them takes longer than a request
_TRY_AGAIN = (408, 429)
_LARGEST_LISTING = 4 << 20  # bytes
_BYTES_PER_TOKEN = 1 << 10  # in an answer; a prompt's log-prob takes about 100
_SHOWN_WORDS = 2000  # bytes


@dataclass(frozen=True)
class ServedModel:
    """A server's model. `max_length` counts tokens, answer included."""

    name: str
    max_length: int


class ServerFailure(Exception):
    """A failed request that may succeed if it is sent again after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Address:
    """A server's `url`, with `/v1` and without a slash at the end, and the user name and password from it. These are
    only used in requests."""

    url: str
    login: tuple[str, str] | None = field(default=None, repr=False)


def parse_address(text: str, *, option: str = "base_url", any_path: bool = False) -> Address:
    """Parse an address of a server, the value of `option`; with `any_path` only an address without a path gets `/v1`.

    Raises InputError if it is no http address.
    """
    url = text.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or not url.isprintable():
        shown = re.sub(r"//.*@", "//***@", text)
        raise InputError(f"{option} {shown!r} is no address of a server; write it like http://127.0.0.1:8000/v1")
    login = None
    if parts.username is not None:
        login = unquote(parts.username), unquote(parts.password or "")
    url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return Address(url if url.endswith("/v1") or (any_path and parts.path) else f"{url}/v1", login)


def open_client(timeout: float, key: str | None = None) -> httpx.AsyncClient:
    """Return a client that waits at most `timeout` seconds for a byte; callers must limit the number of connections.

    With a `key`, which may be empty, nothing of the environment is sent. Raises InputError if the key or login in the
    environment cannot be sent.
    """
    login = ""
    if key is None:
        login = os.environ.get("LONGPO_LOGIN", "").strip()
        key = (os.environ.get("LONGPO_API_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("the key in LONGPO_API_KEY or OPENAI_API_KEY holds characters that no header can carry")
    user, colon, password = login.partition(":")
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        auth=(user, password) if colon else None,
        verify=_CERTIFICATES,
        timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None),
        # Idle connections are closed here before vLLM does it after 5 s, or a request could meet a closing one.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=3.0),
    )


async def ask_model(client: httpx.AsyncClient, address: Address) -> ServedModel:
    """GET /v1/models; return the base model, listed before its adapters. Raises ServerFailure or InputError if not."""
    url = f"{address.url}/models"
    answer = _json(await _send(client, "GET", url, address.login, _CONNECT_SECONDS, _LARGEST_LISTING))
    models = answer.get("data") if isinstance(answer, dict) else None
    first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
    name, length = first.get("id"), first.get("max_model_len")
    if not isinstance(name, str) or type(length) is not int or length < 1:
        raise InputError(f"{url} does not state a model and its max_model_len; the server must be vLLM's")
    return ServedModel(name, length)


async def ask_completion(
    client: httpx.AsyncClient, address: Address, body: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """POST /v1/completions for one prompt; return the parsed answer. Raises ServerFailure if trying again may help, as
    when the answer is not complete after `seconds`, else InputError."""
    url = f"{address.url}/completions"
    largest = _LARGEST_LISTING + _BYTES_PER_TOKEN * (len(body["prompt"]) + body["max_tokens"])
    answer = _json(await _send(client, "POST", url, address.login, seconds, largest, json=body))
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise InputError(f"{url} does not answer as vLLM's does; check --base-url")
    if choices[0].get("finish_reason") == "abort":
        raise ServerFailure("the server gave the request up, as it does when it shuts down")
    return answer


async def ask_chat(
    client: httpx.AsyncClient, address: Address, body: dict[str, Any], seconds: float, key_advice: str
) -> dict[str, Any]:
    """POST /chat/completions to any server that speaks OpenAI's protocol; return the parsed answer, which has a
    message. `key_advice` says what to do if the server refuses access. Raises as `ask_completion` does."""
    url = f"{address.url}/chat/completions"
    content = await _send(client, "POST", url, address.login, seconds, _LARGEST_LISTING, key_advice, json=body)
    answer = _json(content)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(answer, dict) or not isinstance(first, dict) or not isinstance(first.get("message"), dict):
        raise InputError(f"{url} does not answer as an OpenAI-compatible server does; check the address")
    return answer


async def _send(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    login: tuple[str, str] | None,
    seconds: float,
    largest: int,
    key_advice: str = "put the server's key into LONGPO_API_KEY",
    **options: Any,
) -> bytes:
    """Return the content of a good reply. `seconds` limits the whole reply; httpx only limits each read, so a server
    could send single bytes for ever."""
    if login is not None:
        options["auth"] = login
    try:
        reply, content = await asyncio.wait_for(_exchange(client, method, url, largest, options), seconds)
    except (TimeoutError, httpx.TimeoutException) as error:
        raise ServerFailure(f"no answer within the time-out ({type(error).__name__})") from error
    except httpx.TransportError as error:
        raise ServerFailure(str(error) or type(error).__name__) from error
    except httpx.DecodingError as error:
        raise ServerFailure(f"the answer is not compressed as it says ({error})") from error
    status = reply.status_code
    if status in _TRY_AGAIN or status >= 500:
        raise ServerFailure(f"status {status}: {_message(reply, content)}", _retry_after(reply))
    if status in (401, 403):
        raise InputError(f"{url} refuses access (status {status}); {key_advice}")
    if status != 200:
        raise InputError(f"{url} refuses the request (status {status}): {_message(reply, content)}")
    return content


async def _exchange(
    client: httpx.AsyncClient, method: str, url: str, largest: int, options: dict[str, Any]
) -> tuple[httpx.Response, bytes]:
    content = bytearray()
    async with client.stream(method, url, **options) as response:
        async for block in response.aiter_bytes():
            content += block
            if len(content) > largest:
                raise InputError(
                    f"{url} sends more than the {largest:,} bytes that an answer to this request can have; check "
                    "--base-url"
                )
        return response, bytes(content)


def _json(content: bytes) -> Any:
    """Return the parsed content; None if it is not JSON."""
    try:
        return parse_json(content, "the answer", "")
    except InputError:
        return None


def _message(reply: httpx.Response, content: bytes) -> str:
    """Return the server's error message, in the formats of vLLM, FastAPI and proxies."""
    answer = _json(content)
    found = answer.get("error", answer) if isinstance(answer, dict) else None
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail")
    words = found or content[:_SHOWN_WORDS].decode("utf-8", "replace") or reply.reason_phrase
    return " ".join(str(words).split())[:500]


def _retry_after(reply: httpx.Response) -> float:
    """Return the seconds that the server asks to wait, as a number or as a date; 0 if it does not ask."""
    value = reply.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
