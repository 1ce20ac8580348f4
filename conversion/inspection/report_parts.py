"""The parts that the descriptions of both sides share: advice, sizes, positions, finite weights, the tokenizer."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import downloads, model_config, tokenizer_files

from .. import model_on_disk, progress, tensor_values
from ..families.family import Family, Piece
from ..huggingface import tensor_files
from ..huggingface.weights import HfWeights

Result = TypeVar("Result")


class Advice(list[str]):
    def attempt(self, purpose: str, step: Callable[[], Result]) -> Result | None:
        """Return the result of `step`. If it raises InputError, note the error and return None."""
        try:
            return step()
        except InputError as error:
            self.note(f"{purpose}: {error}")
            return None

    def note(self, line: str) -> None:
        """Add a line, once, even if several steps report the same problem."""
        if line not in self:
            self.append(line)


def sizes(config: model_config.ModelConfig) -> dict[str, Any]:
    """Sizes of the model; null where a model of an unknown kind does not give them."""
    known = config.model_type in model_config.DEFAULTS
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.kv_heads,
        "head_size": config.head_size,
        "vocabulary": config.vocab_size,
        "tied": False if known and config.tie_word_embeddings is None else config.tie_word_embeddings,
    }


def positions(config: model_config.ModelConfig) -> dict[str, Any]:
    """Positions and RoPE settings. `sliding_window` is null if the window hides nothing."""
    return {
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.theta,
        "rope_scaling": None if config.rope_type == "default" else config.rope_fields,
        "sliding_window": config.active_window if config.max_position_embeddings else config.sliding_window,
    }


def parameters(family: Family, model_shape: ModelShape) -> int:
    """Number of parameters, without rows that pad the vocabulary; tied embeddings count once."""
    return sum(math.prod(piece.global_shape) for piece in family.first_pieces(model_shape))


Item = TypeVar("Item")


def look_at_huggingface(weights: HfWeights, advice: Advice) -> list[str]:
    """Names of the tensors that hold NaN or infinities."""
    names = [name for name in weights if weights.dtype(name) in tensor_files.TORCH_DTYPES]
    return _look_at(names, lambda name: [(name, weights.read(name))], advice)


def look_at_checkpoint(checkpoint: model_on_disk.ModelOnDisk, advice: Advice) -> list[str]:
    """Hugging Face names of the tensors that hold NaN or infinities; rows that pad the vocabulary do not count."""

    def parts(piece: Piece) -> Iterable[tuple[str, torch.Tensor]]:
        return zip(piece.names, checkpoint.weights.parts(piece), strict=True)

    return _look_at(list(checkpoint.family.pieces(checkpoint.model_shape)), parts, advice)


def _look_at(
    items: list[Item], read: Callable[[Item], Iterable[tuple[str, torch.Tensor]]], advice: Advice
) -> list[str]:
    found = tensor_values.NotFinite()

    def look(item: Item) -> int:
        for name, tensor in read(item):
            found.look_at(name, tensor)
        return 1

    progress.work_through(
        items, look, title="values", total=len(items), workers=progress.DEFAULT_WORKERS, unit="tensor"
    )
    if found.names:
        advice.note(f"weights: {found}")
    return sorted(found.names)


SPECIAL = ("bos", "eos", "pad")
TEMPLATE_FILE = "chat_template.jinja"


def describe_tokenizer(
    directory: Path, config: Mapping[str, Any], advice: Advice, purpose: str = "tokenizer", transformers: int = 4
) -> dict[str, Any]:
    """`special_ids` has, per special token, what each file says: an id, or several that all end a text.

    `transformers` is the major version of the library that is to load the tokenizer.
    """
    usable = advice.attempt(purpose, lambda: _is_usable(directory, transformers))
    settings = _optional(directory / "tokenizer_config.json", advice) if usable else {}
    generation = _optional(directory / "generation_config.json", advice)
    ids = token_ids(directory, settings, advice) if usable else {}
    special = {
        name: {
            "config": config.get(f"{name}_token_id"),
            "generation_config": generation.get(f"{name}_token_id"),
            "tokenizer": ids.get(_content(settings.get(f"{name}_token")) or ""),
        }
        for name in SPECIAL
    }
    template = _template(directory, settings)
    _check(special, template, advice)
    rows, highest = config.get("vocab_size"), max(ids.values(), default=0)
    if rows is not None and highest >= rows:
        advice.note(f"tokenizer: token {highest} has no row in a vocabulary of {rows}")
    return {
        "class": settings.get("tokenizer_class"),
        "files": [name for name in tokenizer_files.TOKENIZERS if (directory / name).is_file()],
        "tokens": len(set(ids.values())) if usable and _is_listed(directory) else None,
        "chat_template": template,
        "special_ids": special,
    }


def _is_usable(directory: Path, transformers: int) -> bool:
    """Return True. Raises InputError if the tokenizer cannot be loaded."""
    tokenizer_files.check_tokenizer_files(directory, transformers)
    return True


def token_ids(directory: Path, settings: Mapping[str, Any], advice: Advice) -> dict[str, int]:
    """Token → id: all of them where a JSON file lists them, else those that the settings name."""
    decoder = settings.get("added_tokens_decoder") or {}
    named = {_content(token) or "": int(number) for number, token in decoder.items()}
    whole = _optional(directory / "tokenizer.json", advice)
    vocabulary = (whole.get("model") or {}).get("vocab") or _optional(directory / "vocab.json", advice)
    if isinstance(vocabulary, list):  # a unigram model: pairs of token and score, in the order of the ids
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
    found = {**vocabulary, **_optional(directory / "added_tokens.json", advice), **named, **added}
    return {token: number for token, number in found.items() if type(number) is int}


def _is_listed(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def _optional(path: Path, advice: Advice) -> dict[str, Any]:
    return (advice.attempt("tokenizer", lambda: downloads.read_model_json(path)) if path.is_file() else None) or {}


def _content(token: Any) -> str | None:
    """Text of a token, which the settings hold as text or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """Name of the file that holds the chat template; a file of its own takes precedence over the settings."""
    if (directory / TEMPLATE_FILE).is_file():
        return TEMPLATE_FILE
    return "tokenizer_config.json" if settings.get("chat_template") else None


def _check(special: Mapping[str, Mapping[str, Any]], template: str | None, advice: Advice) -> None:
    for name, places in special.items():
        found = [{*map(json.dumps, value if isinstance(value, list) else [value])} for value in places.values()]
        known = [ids for ids in found if ids != {"null"}]
        if known and not set.intersection(*known):
            shown = ", ".join(f"{place} {json.dumps(value)}" for place, value in places.items() if value is not None)
            advice.note(f"tokenizer: the files disagree on {name}_token_id: {shown}")
    if template is None:
        advice.note("tokenizer: no chat template; the data tools need one to build conversations")
