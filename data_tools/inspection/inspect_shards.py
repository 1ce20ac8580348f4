"""`longpo data inspect`: read shards once; give their summary, and on request the page."""

import os
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.shards.reader import ShardReader

from .shard_summary import measure, summarise

MOST_SAMPLES = 100


def inspect_shards(
    directory: Path, *, verify: bool = False, model: Path | None = None, page: Path | None = None, samples: int = 0
) -> dict[str, Any]:
    """Return the summary of a shard directory; with `page`, write an HTML file that shows `samples` documents as well.

    With `verify`, every hash, span and sum is recomputed first. `model` is a Hugging Face directory whose tokenizer
    makes the page readable. Raises InputError if the page cannot be written, if the shards are damaged or hold no
    documents, or if another tokenizer made them.
    """
    if page is not None:
        _check_page(page, samples)
    reader = ShardReader(directory)
    if not len(reader):
        raise InputError(f"{directory} holds no documents; rebuild the shards with `longpo data pack`")
    tokenizer = None if model is None else _tokenizer(model, reader)
    if verify:
        reader.verify()
    values = measure(reader)
    summary = summarise(reader, values, verified=verify)
    if page is not None:
        from nemo_longpo.atomic import write_file

        from .page import make_page
        from .token_text import TokenText

        write_file(page, make_page(reader, summary, values, TokenText(tokenizer), samples))
        summary["page"] = str(page)
    return summary


def _check_page(page: Path, samples: int) -> None:
    """Raise InputError before the work if the page cannot be written after it."""
    if page.is_dir():
        raise InputError(f"{page} is a directory; give --html a file, such as {page / 'shards.html'}")
    if not page.absolute().parent.is_dir():
        raise InputError(f"{page.parent} does not exist; make the folder first, or write the page elsewhere")
    if not os.access(page.absolute().parent, os.W_OK):
        raise InputError(f"{page.parent} cannot be written to; write the page elsewhere")
    if not 1 <= samples <= MOST_SAMPLES:
        raise InputError(f"--samples {samples} must be between 1 and {MOST_SAMPLES}")


def _tokenizer(model: Path, reader: ShardReader) -> Any:
    """Return the model's tokenizer. Raises InputError if the shards were written with another one."""
    from ..model import load_chat, tokenizer_identity

    chat = load_chat(model)
    found, stored = tokenizer_identity(chat)["tokenizer_fingerprint"], reader.manifest.tokenizer_fingerprint
    if found != stored:
        raise InputError(
            f"{reader.directory} was written with tokenizer {stored}, but {model} has {found}; give the model that "
            "made the shards, or leave --model out to see token ids"
        )
    return chat.tokenizer
