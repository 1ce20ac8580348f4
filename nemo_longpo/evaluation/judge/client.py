"""A model behind an OpenAI-compatible server: requests at the same time, tried again where that may help; a judge."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_longpo.data_tools.engines import server_http, server_pool
from nemo_longpo.errors import InputError
from nemo_longpo.terminal import printable

from ..eval_settings import JudgeSettings, Key

Messages = list[dict[str, str]]
_GREETING: Messages = [{"role": "user", "content": "Answer with one word: are you there?"}]
_GREETING_TOKENS = 16
_GREETING_RETRIES = 2


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model says: its text, and what its server says of it. A text cut off at the limit ends by "length"."""

    text: str
    finish_reason: str | None
    model: str | None
    usage: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class ChatServer:
    """A model behind an OpenAI-compatible server. The key goes nowhere but there, and stands in no message.

    `called` names it in messages, `option` is where its address came from. `template_kwargs` are what it tells its chat
    template, as the field `chat_template_kwargs` that vLLM and SGLang read.
    """

    name: str
    address: server_http.Address
    key: Key
    concurrency: int
    timeout: float
    pauses: server_pool.Pauses
    called: str
    option: str
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def ask(
        self,
        conversations: Sequence[Messages],
        keep: Callable[[int, Reply], None],
        *,
        max_tokens: int,
        retries: int,
    ) -> None:
        """Ask all with temperature 0, and call `keep` with index and reply of each as soon as it is there.

        Raises InputError at the first request that failed for good; what was answered before has been kept.
        """
        asyncio.run(self._all(conversations, keep, max_tokens, retries))

    def check(self, retries: int) -> None:
        """Ask for one word. Raises InputError if it cannot be reached, refuses the key, or has another name."""
        few = min(_GREETING_RETRIES, retries)
        self.ask([_GREETING], lambda index, reply: None, max_tokens=_GREETING_TOKENS, retries=few)

    async def _all(
        self, conversations: Sequence[Messages], keep: Callable[[int, Reply], None], max_tokens: int, retries: int
    ) -> None:
        slots = asyncio.Semaphore(self.concurrency)
        async with server_http.open_client(self.timeout, self.key.value) as client:

            async def run(index: int, messages: Messages) -> None:
                body = {"model": self.name, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
                if self.template_kwargs:
                    body["chat_template_kwargs"] = dict(self.template_kwargs)
                async with slots:
                    keep(index, _read(await self._patiently(client, body, retries)))

            tasks = [asyncio.create_task(run(*each)) for each in enumerate(conversations)]
            try:
                await asyncio.gather(*tasks)
            except InputError as error:
                raise InputError(printable(self.key.hidden(str(error)))) from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _patiently(self, client: Any, body: dict[str, Any], retries: int) -> dict[str, Any]:
        failures = 0
        while True:
            try:
                return await server_http.ask_chat(client, self.address, body, self.timeout, self.key.advice)
            except server_http.ServerFailure as failure:
                failures += 1
                if failures > retries:
                    times = "once" if failures == 1 else f"{failures} times, the last time"
                    raise InputError(
                        f"{self.called} at {self.address.url} failed {times} with: {failure}; "
                        f"start its server or correct {self.option}, then run the same command again (what was "
                        "answered is kept)"
                    ) from failure
                asked = min(failure.wait, self.pauses.longest_asked_for)
                await asyncio.sleep(max(self.pauses.after(failures), asked))


def parse_chat_address(text: str, option: str) -> server_http.Address:
    """Parse the address of a server, with or without what is behind it. Raises InputError if it is none."""
    address = text.strip().rstrip("/").removesuffix("/chat/completions")
    return server_http.parse_address(address, option=option, any_path=True)


class Judge:
    """Asks the judge that the settings name, with temperature 0. Raises InputError if a setting is missing."""

    def __init__(self, settings: JudgeSettings, pauses: server_pool.Pauses | None = None):
        if not settings.judge_model or not settings.judge_url:
            raise InputError(
                "the answers to the benchmarks of suite chat are rated by a judge; name it with --judge-model and its "
                "server with --judge-url, or leave these benchmarks out"
            )
        self.name = settings.judge_model
        self._settings = settings
        self._server = ChatServer(
            name=settings.judge_model,
            address=parse_chat_address(settings.judge_url, "judge_url"),
            key=settings.key(),
            concurrency=settings.judge_concurrency,
            timeout=settings.judge_timeout,
            pauses=pauses or server_pool.Pauses(),
            called="the judge",
            option="--judge-url",
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two judges the same: where its server runs does not."""
        return {"judge": self.name, "temperature": 0, "max_tokens": self._settings.judge_max_tokens}

    def check(self) -> None:
        """As ChatServer.check."""
        self._server.check(self._settings.judge_retries)

    def ask(self, conversations: Sequence[Messages], keep: Callable[[int, Reply], None]) -> None:
        """As ChatServer.ask."""
        most, retries = self._settings.judge_max_tokens, self._settings.judge_retries
        self._server.ask(conversations, keep, max_tokens=most, retries=retries)


def _read(answer: dict[str, Any]) -> Reply:
    """Read the first choice; a refusal to speak is an empty text."""
    choice = answer["choices"][0]
    content, model, usage = choice["message"].get("content"), answer.get("model"), answer.get("usage")
    reason = choice.get("finish_reason")
    return Reply(
        text=content if isinstance(content, str) else "",
        finish_reason=reason if isinstance(reason, str) else None,
        model=model if isinstance(model, str) else None,
        usage=usage if isinstance(usage, dict) else None,
    )
