"""A corpus and models that end their answers, for the stage tests."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.tiny_models import DEFAULT_STYLE, save_tiny, sentences, tiny_model, tiny_tokenizer


def save_stopping_model(
    directory: Path, family: str, style: str | None = None, *, seed: int = 0, **overrides: Any
) -> Path:
    """A tiny model that ends an answer after a few tokens, on average, and writes no other special token.

    One channel of the embedding is the same for all tokens, so it survives to the last layer, where the end-of-turn
    row of the output matrix listens to it, and those of the others shrink from it.
    """
    save_tiny(directory, family, style, seed=seed, **overrides)
    tokenizer = tiny_tokenizer(style or DEFAULT_STYLE[family])
    model = tiny_model(family, tokenizer, seed=seed, tie_word_embeddings=False, **overrides)
    model.model.embed_tokens.weight.data[:, 0] = 1.0
    model.model.norm.weight.data[0] = 1.0
    model.lm_head.weight.data[:, 0] = 0.0
    model.lm_head.weight.data[sorted(tokenizer.added_tokens_decoder), 0] = -3.0
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0.0
    model.lm_head.weight.data[tokenizer.eos_token_id, 0] = 1.5
    model.save_pretrained(directory, safe_serialization=True)
    return directory


def save_reciting_model(directory: Path, family: str, recited: list[str], **overrides: Any) -> Path:
    """A tiny model that writes the given tokens one after the other, from the second on, whenever it reads the first.

    Its layers add nothing to the embedding, and the output row of each token listens to the embedding of the last one.
    """
    save_tiny(directory, family, **overrides)
    tokenizer = tiny_tokenizer(DEFAULT_STYLE[family])
    model = tiny_model(family, tokenizer, tie_word_embeddings=False, **overrides)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.model.norm.weight.data.fill_(1.0)
    model.lm_head.weight.data.zero_()
    ids = tokenizer.convert_tokens_to_ids(recited)
    for before, after in pairwise(ids):
        model.lm_head.weight.data[after] += model.model.embed_tokens.weight.data[before]
    model.save_pretrained(directory, safe_serialization=True)
    return directory


def declare_ends(directory: Path, ends: list[int], name: str = "generation_config.json") -> None:
    """Write the ids of end tokens into one of a model's files."""
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))


def make_document(index: int, paragraphs: int = 6) -> str:
    """Plain prose of about 45 tokens per paragraph, another one for every index."""
    words = sentences()
    lines = [" ".join(words[(37 * index + 7 * p + s) % len(words)] for s in range(5)) for p in range(paragraphs)]
    return "\n\n".join(lines) + "\n"
