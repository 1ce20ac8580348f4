"""Names for a tokenizer, a chat template and a model that change when their behaviour does.

Tokenizers are passed in, so this module needs no transformers.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

from .manifest import ReferenceModel, sha256_file

# Spaces, scripts, digits, newlines and code: places where tokenizers of the same vocabulary part ways.
_PROBE = (
    "The quick brown fox, 12345 and 3.14!  Two  spaces\n\nA new paragraph:\tnaïve café, 你好，世界, Привет, مرحبا 🙂\n"
    "def f(x):\n    return {'a': x ** 2}  # done\n <tag> [INST] x [/INST] </s>"
)
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "max_position_embeddings")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a sha256 over a Hugging Face tokenizer's vocabulary, BOS and EOS ids, and its encoding of a fixed text.

    Every added token is part of that text, so its stripping rules count too. The padding and truncation state, and
    aliases such as the pad token, do not count: trainers set them freely.
    """
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    probe = _PROBE + "".join(f" {token} x{token}" for token in added)
    encoded = tokenizer(probe, add_special_tokens=False, padding=False, truncation=False, verbose=False)["input_ids"]
    content = {
        "vocabulary": sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "encoded": list(encoded),
    }
    return _digest(content)


def chat_template_hash(tokenizer: Any) -> str:
    """Return the sha256 of the chat template's text. Raises InputError if the tokenizer has none."""
    return hashlib.sha256(chat_template(tokenizer).encode()).hexdigest()


def chat_template(tokenizer: Any) -> str:
    """Return the template that a tokenizer uses for plain conversations. Raises InputError if there is none."""
    found, where = tokenizer.chat_template, f"the tokenizer of {tokenizer.name_or_path}"
    if not found:
        raise InputError(
            f"{where} has no chat template: use an instruct model, or put a 'chat_template' into its "
            "tokenizer_config.json"
        )
    if isinstance(found, dict):
        if "default" not in found:
            raise InputError(
                f"{where} has chat templates named {', '.join(map(str, found))}, but none named default; rename the "
                "one for plain conversations in its tokenizer_config.json"
            )
        found = found["default"]
    if not isinstance(found, str):
        raise InputError(f"{where} has a chat template that is no text but a {type(found).__name__}; correct it")
    return found


def model_fingerprint(directory: str | Path, *, dtype: str | None = None) -> ReferenceModel:
    """Hash the safetensors files of a Hugging Face model directory, and read its rotary settings.

    `dtype` is the one the model runs in; by default, the one its configuration names. Raises InputError if the
    directory holds no configuration or no safetensors.
    """
    directory = Path(directory)
    config = ModelConfig.read(directory)
    weights = weights_fingerprint(directory)
    rope = {key: config.raw[key] for key in _ROPE_KEYS if config.raw.get(key) is not None}
    return ReferenceModel(weights, rope, dtype or config.stored_dtype)


def weights_fingerprint(directory: Path) -> str:
    """Return a sha256 over names and hashes of all safetensors files. Raises InputError if there are none."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(f"{directory} holds no .safetensors file; save the model with `safe_serialization=True`")
    states = [(path, path.stat()) for path in files]
    return _digest([(path.name, _hash_unless_known(path, state.st_size, state.st_mtime_ns)) for path, state in states])


@cache
def _hash_unless_known(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once, although a run of many stages asks for the same gigabytes again and again."""
    return sha256_file(path)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
