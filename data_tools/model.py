"""Open a Hugging Face model directory for the data tools: its tokenizer, its chat format, its fingerprints."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.shards.fingerprint import (
    chat_template_hash,
    model_fingerprint,
    read_model_config,
    tokenizer_fingerprint,
)

from .chat.format import ChatFormat
from .settings import EngineSettings


def load_chat(directory: str | Path) -> ChatFormat:
    """The chat format of a model directory. Raises InputError if it holds no fast tokenizer with a chat template."""
    from transformers import AutoTokenizer

    read_model_config(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory} holds no tokenizer that can be loaded ({error}); add its files") from error
    if not tokenizer.is_fast:
        raise InputError(f"{directory} has only a slow tokenizer; save its fast form (tokenizer.json) there")
    return ChatFormat(tokenizer)


def tokenizer_identity(chat: ChatFormat) -> dict[str, Any]:
    """What makes two tokenizers the same for stored token ids."""
    return {
        "tokenizer_fingerprint": tokenizer_fingerprint(chat.tokenizer),
        "chat_template_hash": chat_template_hash(chat.tokenizer),
    }


def model_identity(directory: str | Path, engine: EngineSettings) -> dict[str, Any]:
    """What makes two models the same for stored log-probs: weights, and the RoPE settings and dtype they run with."""
    found = asdict(model_fingerprint(directory, dtype=None if engine.dtype == "auto" else engine.dtype))
    if engine.rope_theta is not None:
        found["rope"]["rope_theta"] = engine.rope_theta
    return found
