"""The models to compare: which directory, which tokenizer, how long they read, what makes two of them the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nemo_longpo.data_tools import model as model_directory
from nemo_longpo.data_tools.engines.engine import ReportingEngine
from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.shards import fingerprint

from . import chat_completions
from .judge.client import ChatServer

_FIRST_RETRIES = 2
"""Whether a server is there, is known within seconds; once it answers, more patience may help."""

_UNKNOWN_LENGTH = 1 << 40


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A model directory under a name for tables. `max_length` is the most tokens that it reads and writes.

    With `chat` it is one that answers there, under the name `directory`; `tokenizer` and `config` may then be None.
    """

    label: str
    directory: Path
    config: ModelConfig | None
    tokenizer: Any
    stop_ids: frozenset[int]
    max_length: int
    identity: Mapping[str, Any]
    engine: EngineOptions
    chat: ChatServer | None = None

    def load_engine(self) -> ReportingEngine:
        return self.engine.load(self.directory, share_prefixes=True)

    def length_served(self) -> int:
        """Return `max_length`, or what its servers say where that is less.

        Raises InputError if a server does not answer after a few tries, or is not as needed.
        """
        if self.engine.common.engine == "server":
            few = replace(self.engine.server, retries=min(self.engine.server.retries, _FIRST_RETRIES))
            served = replace(self.engine, server=few).load(self.directory).max_length
            return min(self.max_length, served or self.max_length)
        return self.max_length


def open_chat_models(
    named: Sequence[str],
    engine: EngineOptions,
    *,
    tokenizer: Path | None,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[EvalModel]:
    """Open every `[NAME=]MODEL@URL` behind an OpenAI-compatible server; MODEL is its name there.

    Lengths are by the tokenizer in a directory of the same name, else by the one in `tokenizer`, else unknown. The
    servers tell their templates `template_kwargs`.

    Raises InputError if two have one name, if a server does not answer, or if a tokenizer cannot be loaded.
    """
    if engine.common.engine != "server":
        raise InputError(f"chat completions come from servers; leave out --engine {engine.common.engine}")
    return [_open_chat(*given, tokenizer, template_kwargs) for given in _named(named, engine)]


def _open_chat(
    label: str, path: Path, engine: EngineOptions, tokenizer: Path | None, told: Mapping[str, Any]
) -> EvalModel:
    directory = path if path.is_dir() else tokenizer
    config = None if directory is None else ModelConfig.read(directory)
    positions = None if config is None else config.max_position_embeddings
    server = chat_completions.open_server(str(path), engine.server, told)
    return EvalModel(
        label=label,
        directory=path,
        config=config,
        tokenizer=None if directory is None else model_directory.load_tokenizer(directory)[0],
        stop_ids=frozenset(),
        max_length=positions or _UNKNOWN_LENGTH,
        identity={"chat_completions": server.name, "server": server.address.url}
        | ({"chat_template_kwargs": dict(told)} if told else {}),
        engine=engine,
        chat=server,
    )


def open_models(
    named: Sequence[str],
    engine: EngineOptions,
    *,
    day: date,
    chat_template: bool,
    max_length: int | None,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[EvalModel]:
    """Open every `[NAME=]DIR[@URL,…]` without its weights; the addresses are of the servers of this model alone.

    Raises InputError if two have one name, if a directory is no model, if one has no chat template where a question
    needs it, or one that one of the `template_kwargs` changes nothing in, if it has fewer positions than `max_length`,
    or if a server does not answer.
    """
    given = _named(named, engine)
    if engine.common.engine == "server" and len({own.server.base_url for _, _, own in given}) < len(given):
        raise InputError(
            "a server holds one model; say which servers are whose, as in before=MODEL@http://127.0.0.1:8000/v1 "
            "after=MODEL@http://127.0.0.1:8001/v1"
        )
    if template_kwargs and not chat_template:
        raise InputError("no question goes through the chat template; leave out chat_template_kwargs")
    opened = [_open(*each, day, chat_template, max_length, template_kwargs) for each in given]
    return [replace(model, max_length=model.length_served()) for model in opened]


def _named(named: Sequence[str], engine: EngineOptions) -> list[tuple[str, Path, EngineOptions]]:
    given = [_parse(text, engine) for text in named]
    labels = [label for label, _, _ in given]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"two models are called {repeated[0]!r}; name them, as in before={given[0][1]}")
    return given


def _parse(text: str, engine: EngineOptions) -> tuple[str, Path, EngineOptions]:
    """Return name, directory and engine of a model as it is named on the command line."""
    label, given, rest = text.partition("=")
    if not given or not label or "/" in label:
        label, rest = "", text
    path, at, addresses = rest.partition("@http")
    if at:
        urls = tuple(f"http{addresses}".split(","))
        engine = replace(engine, server=replace(engine.server, base_url=urls))
    return label or Path(path).resolve().name, Path(path), engine


def _open(
    label: str,
    directory: Path,
    engine: EngineOptions,
    day: date,
    chat_template: bool,
    max_length: int | None,
    told: Mapping[str, Any],
) -> EvalModel:
    if not directory.is_dir():
        raise InputError(f"{directory} does not exist; give a Hugging Face model directory")
    config = ModelConfig.read(directory)
    (positions,) = config.require("max_position_embeddings")
    if engine.common.engine == "vllm" and engine.vllm.max_model_len is not None:
        positions = engine.vllm.max_model_len
    if max_length is not None and max_length > positions:
        raise InputError(
            f"{directory} has {positions:,} positions, fewer than the {max_length:,} tokens asked for; leave out "
            "longer lengths, or give the model that was made for them"
        )
    tokenizer, ends = model_directory.load_tokenizer(directory)
    stop_ids = frozenset({*ends, tokenizer.eos_token_id} - {None})
    rendered: dict[str, Any] = {}
    if chat_template:
        if not tokenizer.chat_template:
            raise InputError(
                f"{directory} has no chat template, which the questions of these benchmarks need; use a model with "
                "one, or ask in plain text with --chat-template never"
            )
        chat = model_directory.load_chat(directory, day, told)
        stop_ids |= chat.stop_ids
        rendered = model_directory.rendering_identity(chat)
    return EvalModel(
        label=label,
        directory=directory,
        config=config,
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        max_length=positions,
        identity={
            "model": model_directory.model_identity(directory, engine.common),
            "engine": engine.common.recorded(),
            "tokenizer_fingerprint": fingerprint.tokenizer_fingerprint(tokenizer),
        }
        | rendered,
        engine=engine,
    )
