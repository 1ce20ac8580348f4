"""A model behind any OpenAI-compatible server: messages go out as text, and text comes back.

Nothing is known of its tokens but what a tokenizer of ours says, and it gives no log-likelihoods.
"""

import json
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from types import MappingProxyType
from typing import Any

from lm_eval.api import instance

from nemo_longpo.data_tools.engines.engine import ReportingEngine
from nemo_longpo.data_tools.engines.server_pool import Pauses
from nemo_longpo.data_tools.runner import Usage
from nemo_longpo.data_tools.settings import ServerSettings
from nemo_longpo.errors import InputError

from .eval_settings import Key
from .judge.client import ChatServer, Reply, parse_chat_address
from .language_model import Answers, Asked, EngineLM, Messages, Questions, Tokens, before_stop, key_of


def open_server(name: str, settings: ServerSettings, template_kwargs: Mapping[str, Any]) -> ChatServer:
    """Return the server of a model by the name that it has there; it tells its template `template_kwargs`.

    Raises InputError if it does not answer for it.
    """
    if len(settings.base_url) != 1:
        raise InputError(
            f"chat completions of {name} need the address of its server: write {name}@https://api.openai.com/v1, or "
            "give one --base-url for all models"
        )
    key = (os.environ.get("LONGPO_API_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()
    server = ChatServer(
        name=name,
        address=parse_chat_address(settings.base_url[0], "base_url"),
        key=Key(key, "put the server's key into LONGPO_API_KEY"),
        concurrency=settings.concurrency,
        timeout=settings.timeout,
        pauses=Pauses(),
        called=f"the server of {name}",
        option="--base-url",
        template_kwargs=template_kwargs,
    )
    server.check(settings.retries)
    return server


class ChatLM(EngineLM):
    """A language model whose prompts are conversations, as JSON. Without a `tokenizer` every prompt has length 0, and
    the server refuses what is too long.

    The first words of an answer, which other engines let the model continue, stand at the end of the question.
    """

    def __init__(
        self,
        tokenizer: Any,
        answers: Answers,
        server: ChatServer,
        retries: int,
        tick: Callable[[Usage], None],
        day: date,
        answered: Callable[[str], None] = lambda _: None,
        template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ):
        def no_engine() -> ReportingEngine:
            raise AssertionError("the server answers")

        super().__init__(tokenizer, frozenset(), answers, no_engine, tick, day, answered, template_kwargs)
        self._server, self._retries = server, retries

    @property
    def tokenizer_name(self) -> str:
        return self._server.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Token ids of a text, or of a conversation as the tokenizer's own template writes it."""
        if self.tokenizer is None:
            return []
        messages = _messages(string)
        if messages is not None and self.tokenizer.chat_template:
            string = super().apply_chat_template(messages)
        elif messages is not None:
            string = "\n".join(message["content"] for message in messages)
        return super().tok_encode(string, add_special_tokens, **options)

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        """The conversation as JSON, which ends with the user's message."""
        messages = [dict(message) for message in chat_history]
        if not add_generation_prompt:
            begun = messages.pop()
            messages[-1]["content"] += f" {begun['content']}"
        return json.dumps(messages, ensure_ascii=False)

    def read(self, request: instance.Instance) -> tuple[Asked, Tokens]:
        """As EngineLM.read. Raises InputError for log-likelihoods, and for plain text."""
        if request.request_type != "generate_until":
            raise InputError(
                f"{request.task_name} compares the log-likelihoods of choices, which chat completions do not give; "
                "leave it out, or use another engine"
            )
        prompt, settings = request.args
        if _messages(prompt) is None:
            raise InputError(
                f"{request.task_name} asks in plain text, and chat completions take messages; leave out "
                "--chat-template never"
            )
        ids, limit = array("i", self.tok_encode(prompt)), int(settings["max_gen_toks"])
        told = [self.template_kwargs] if self.template_kwargs else []
        return Asked(key_of(["chat", prompt, limit, *told]), len(ids), limit, len(ids) - 1), ids

    def recall(self, request: instance.Instance, key: str) -> str:
        """Return the kept answer."""
        return before_stop(self.answers[key], request.args[1].get("until") or ()).strip()

    def answer(self, requests: Sequence[instance.Instance], readings: Questions) -> list[str]:
        """The model's answers at temperature 0, in order; each is kept as soon as it is there."""
        asked = [one for one, _ in readings]
        missing = {
            one.key: (one, request) for one, request in zip(asked, requests, strict=True) if one.key not in self.answers
        }
        for limit in sorted({one.new_tokens for one, _ in missing.values()}):
            self._ask_server([pair for pair in missing.values() if pair[0].new_tokens == limit], limit)
        return [self.recall(request, one.key) for request, one in zip(requests, asked, strict=True)]

    def _ask_server(self, chosen: Sequence[tuple[Asked, instance.Instance]], limit: int) -> None:
        def keep(index: int, reply: Reply) -> None:
            one, _ = chosen[index]
            self.answers.put(one.key, reply.text)
            self._tick(Usage(1, one.prompt_tokens))
            self._answered(one.key)

        conversations = [json.loads(request.args[0]) for _, request in chosen]
        self._server.ask(conversations, keep, max_tokens=limit, retries=self._retries)


def _messages(text: str) -> list[dict[str, str]] | None:
    """Return the messages of a conversation that is written as JSON; None for another text."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    is_conversation = (
        isinstance(found, list) and found and all(isinstance(one, dict) and "role" in one for one in found)
    )
    return found if is_conversation else None
