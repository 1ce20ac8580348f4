"""Open a Hugging Face model directory for the data tools: its tokenizer, its chat format, its fingerprints."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError, one_line
from nemo_longpo.model_directory import downloads, model_config, tokenizer_files
from nemo_longpo.shards import fingerprint

from .chat.format import ChatFormat
from .settings import EngineSettings

_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError)
"""Errors that transformers raises for damaged files (found by changing them at random)."""


def load_tokenizer(directory: str | Path) -> tuple[Any, list[int]]:
    """Return the fast tokenizer of a model directory, and the tokens that end an answer by the model's files.

    Raises InputError if there is no tokenizer, only a slow one, or one that cannot be loaded.
    """
    from transformers import AutoTokenizer

    config = model_config.ModelConfig.read(directory)
    tokenizer_files.check_tokenizer_files(Path(directory), tokenizer_files.installed_transformers())
    with _explained(directory):
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        if not tokenizer.is_fast:
            raise InputError(f"{directory} has only a slow tokenizer; save its fast form (tokenizer.json) there")
        return tokenizer, _end_ids(Path(directory), config.raw, config.vocab_size or len(tokenizer))


def load_chat(
    directory: str | Path, day: date | None = None, template_kwargs: Mapping[str, Any] | None = None
) -> ChatFormat:
    """Return the chat format of a model directory; `day` is for templates that print the date, `template_kwargs` what
    else a template is told.

    Raises InputError if it holds no fast tokenizer with a chat template, if the template does not read one of the
    `template_kwargs`, or if the model has no row for some token.
    """
    tokenizer, ends = load_tokenizer(directory)
    with _explained(directory):
        chat = ChatFormat(tokenizer, ends, day, template_kwargs)
        _check_rows(chat, model_config.ModelConfig.read(directory).vocab_size or len(tokenizer), directory)
        return chat


@contextmanager
def _explained(directory: str | Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(
            f"{directory} holds no tokenizer that can be loaded ({one_line(error)}); download its files again, or "
            "correct them"
        ) from error


def _end_ids(directory: Path, config: Mapping[str, Any], rows: int) -> list[int]:
    """Return every token that config.json or generation_config.json declares as the end of an answer; there may be
    several. A token without a row in the model cannot be generated, and is left out."""
    path = directory / "generation_config.json"
    generation = downloads.read_model_json(path) if path.is_file() else {}
    ends: list[int] = []
    for name, content in (("config.json", config), (path.name, generation)):
        declared = content.get("eos_token_id")
        several = declared if isinstance(declared, list) else [] if declared is None else [declared]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in several):
            raise InputError(
                f"{directory / name}: eos_token_id must be a token id or a list of them, not {declared!r}; download "
                "the model again"
            )
        ends += several
    return [token for token in ends if 0 <= token < rows]


def _check_rows(chat: ChatFormat, rows: int, directory: str | Path) -> None:
    """Raises InputError if a token has no row. Special tokens outside conversations, such as pad tokens, need none."""
    unwritten = chat.special.ids - chat.special.written
    beyond = {index: token for token, index in chat.tokenizer.get_vocab().items() if index >= rows}
    missing = sorted(index for index in beyond if index not in unwritten)
    if missing:
        raise InputError(
            f"{directory}: the tokenizer has {len(missing)} tokens beyond the {rows} rows of the model's embedding, "
            f"such as {beyond[missing[0]]!r} (id {missing[0]}); use the tokenizer that the model was trained with, or "
            "resize its embedding"
        )


def tokenizer_identity(chat: ChatFormat) -> dict[str, Any]:
    """Return what two tokenizers must share to give the same token ids."""
    found = {
        "tokenizer_fingerprint": fingerprint.tokenizer_fingerprint(chat.tokenizer),
        "chat_template_hash": fingerprint.chat_template_hash(chat.tokenizer),
    }
    return found | _told(chat)


def _told(chat: ChatFormat) -> dict[str, Any]:
    return {"chat_template_kwargs": chat.template_kwargs} if chat.template_kwargs else {}


def rendering_identity(chat: ChatFormat) -> dict[str, Any]:
    """Return what decides the prompts of messages and the ends of answers: what the template is told, and what it
    writes with this tokenizer, this version of transformers and, if it prints the date, on this day."""
    found = {"chat_pieces_hash": chat.pieces_hash, "end_token_ids": sorted(chat.stop_ids)} | _told(chat)
    return found if chat.printed_day is None else found | {"chat_date": chat.printed_day.isoformat()}


def model_identity(directory: str | Path, engine: EngineSettings) -> dict[str, Any]:
    """Return what two models must share to give the same log-probs: weights, and the RoPE settings and dtype in use."""
    found = asdict(fingerprint.model_fingerprint(directory, dtype=None if engine.dtype == "auto" else engine.dtype))
    if engine.rope_theta is not None:
        found["rope"]["rope_theta"] = engine.rope_theta
    return found
