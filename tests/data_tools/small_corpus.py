"""A corpus and models that stop talking, for the stage tests."""

from pathlib import Path
from typing import Any

from tiny import DEFAULT_STYLE, save_tiny, sentences, tiny_model, tiny_tokenizer


def save_stopping_model(
    directory: Path, family: str, style: str | None = None, *, seed: int = 0, **overrides: Any
) -> Path:
    """A tiny model that ends an answer after a few tokens, on average.

    One channel of the embedding is the same for all tokens, so it survives to the last layer, where the end-of-turn
    row of the output matrix listens to it.
    """
    save_tiny(directory, family, style, seed=seed, **overrides)
    tokenizer = tiny_tokenizer(style or DEFAULT_STYLE[family])
    model = tiny_model(family, tokenizer, seed=seed, tie_word_embeddings=False, **overrides)
    model.model.embed_tokens.weight.data[:, 0] = 1.0
    model.model.norm.weight.data[0] = 1.0
    model.lm_head.weight.data[:, 0] = 0.0
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0.0
    model.lm_head.weight.data[tokenizer.eos_token_id, 0] = 1.5
    model.save_pretrained(directory, safe_serialization=True)
    return directory


def make_document(index: int, paragraphs: int = 6) -> str:
    """Plain prose of about 45 tokens per paragraph, another one for every index."""
    words = sentences()
    lines = [" ".join(words[(37 * index + 7 * p + s) % len(words)] for s in range(5)) for p in range(paragraphs)]
    return "\n\n".join(lines) + "\n"
