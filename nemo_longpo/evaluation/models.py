"""The models to compare: which directory, which tokenizer, how long they read, what makes two of them the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from nemo_longpo.data_tools import model as model_directory
from nemo_longpo.data_tools.engines.engine import ReportingEngine
from nemo_longpo.data_tools.stages.model_stage import EngineOptions
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig
from nemo_longpo.shards import fingerprint


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A model directory under a name for tables. `max_length` is the most tokens that it reads and writes."""

    label: str
    directory: Path
    config: ModelConfig
    tokenizer: Any
    stop_ids: frozenset[int]
    max_length: int
    identity: Mapping[str, Any]
    engine: EngineOptions

    def load_engine(self) -> ReportingEngine:
        return self.engine.load(self.directory, share_prefixes=True)


def open_models(
    named: Sequence[str], engine: EngineOptions, *, day: date, chat_template: bool, max_length: int | None
) -> list[EvalModel]:
    """Open every `DIR` or `NAME=DIR` without its weights.

    Raises InputError if two have one name, if a directory is no model, if one has no chat template where a question
    needs it, or if it has fewer positions than `max_length`.
    """
    pairs = [_label(text) for text in named]
    labels = [label for label, _ in pairs]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"two models are called {repeated[0]!r}; name them, as in before={pairs[0][1]}")
    return [_open(label, directory, engine, day, chat_template, max_length) for label, directory in pairs]


def _label(text: str) -> tuple[str, Path]:
    label, given, path = text.partition("=")
    if given and label and "/" not in label:
        return label, Path(path)
    return Path(text).resolve().name, Path(text)


def _open(
    label: str, directory: Path, engine: EngineOptions, day: date, chat_template: bool, max_length: int | None
) -> EvalModel:
    config = ModelConfig.read(directory)
    (positions,) = config.require("max_position_embeddings")
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
        chat = model_directory.load_chat(directory, day)
        stop_ids |= chat.stop_ids
        rendered = model_directory.rendering_identity(chat)
    return EvalModel(
        label=label,
        directory=directory,
        config=config,
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        max_length=max_length or positions,
        identity={
            "model": model_directory.model_identity(directory, engine.common),
            "engine": engine.common.recorded(),
            "tokenizer_fingerprint": fingerprint.tokenizer_fingerprint(tokenizer),
        }
        | rendered,
        engine=engine,
    )
