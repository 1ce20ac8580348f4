"""`longpo data inspect`: read shards once; return their summary and, on request, write the page.

The page is one HTML file with numbers, plots, and documents to read. It loads nothing from the network. Its size is
bounded: at most `samples` documents of 8 turns, of each answer 512 tokens at about 75 bytes, of each chunk 2048 and of
each context 320 at about 8 bytes: less than 1 MB per document, whatever the size of the shards.
"""

import base64
import functools
import hashlib
import os
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nemo_longpo import atomic, terminal
from nemo_longpo.errors import InputError
from nemo_longpo.shards.reader import ShardReader

from .drawings import draw, flatten, signed, words
from .sample_view import SHADES, TokenText, document_view
from .shard_summary import SPREAD, Values, measure, summarise

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
        atomic.write_file(page, make_page(reader, summary, values, TokenText(tokenizer), samples))
        summary["page"] = str(page)
    return summary


def shard_page(directory: Path, models: Sequence[Path], *, samples: int, most: int) -> tuple[dict[str, Any], str, str]:
    """Return the summary, the page, and a sentence if it shows token ids, of at most `most` evenly spaced documents.

    `models` are Hugging Face directories whose tokenizer may be that of the shards. Raises InputError if the shards are
    damaged or hold no documents.
    """
    reader = ShardReader(directory)
    if not len(reader):
        raise InputError(f"{directory} holds no documents; rebuild the shards with `longpo data pack`")
    tokenizer, without = None, "no tokenizer of these shards was found"
    for model in models:
        try:
            tokenizer, without = _tokenizer(model, reader), ""
            break
        except InputError as error:
            without = str(error)
    places = [place * len(reader) // most for place in range(most)] if len(reader) > most else range(len(reader))
    values = measure(reader[place] for place in places)
    summary = summarise(reader, values, verified=False)
    page = make_page(reader, summary, values, TokenText(tokenizer), samples, places)
    return summary, page, f"Samples are shown as token ids: {without}." if without else ""


def _check_page(page: Path, samples: int) -> None:
    """Check before the work that the page can be written. Raises InputError if not."""
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
    from ..settings import TemplateKwargs

    chat = load_chat(model, template_kwargs=TemplateKwargs().or_recorded(reader.manifest.generation))
    found, stored = tokenizer_identity(chat)["tokenizer_fingerprint"], reader.manifest.tokenizer_fingerprint
    if found != stored:
        raise InputError(
            f"{reader.directory} was written with tokenizer {stored}, but {model} has {found}; give the model that "
            "made the shards, or leave --model out to see token ids"
        )
    return chat.tokenizer


_FOLDER = Path(__file__).parent
# Characters that scripts need or that do no harm: joiners, direction marks, line breaks, tabs.
_NEEDED = frozenset("\u200c\u200d\u200e\u200f\n\t")
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


@functools.cache
def environment(*folders: Path) -> Environment:
    """Return the environment of these folders' templates, which escape values and spell out hidden characters."""
    made = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        finalize=_spelled_out,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chosen = (terminal.number, terminal.share, terminal.shortened, signed, terminal.size, words)
    made.filters |= {call.__name__: call for call in chosen}
    return made


def style() -> str:
    """Return the style sheet of pages, in dark and light, for desktop, phone and print."""
    return (_FOLDER / "page.css").read_text(encoding="utf-8")


def make_page(
    reader: ShardReader,
    summary: dict[str, Any],
    values: Values,
    text: TokenText,
    samples: int,
    places: Sequence[int] | None = None,
) -> str:
    """Return the page as text. It shows `samples` documents, from the lowest to the highest margin.

    `places` are those of the documents that were measured, all without it.
    """
    places = range(len(reader)) if places is None else places
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    bounds = [f"{100 * bound:g} %" for bound in SHADES]
    shades = [f"under {bounds[0]}", *(f"{low} to {high}" for low, high in pairwise(bounds)), f"{bounds[-1]} and over"]
    margins = values["margin_per_document"]
    template = environment(_FOLDER).get_template("page.html")
    return template.render(
        name=Path(summary["directory"]).absolute().name,
        # The browser runs this script and no other, and loads nothing.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=Markup(style()),
        script=Markup(script),
        summary=summary,
        columns=SPREAD,
        plots=draw(summary, values),
        documents=len(reader),
        picked=[(standing, margins[index], reader[places[index]]) for standing, index in pick(margins, samples)],
        view=lambda record: document_view(record, text),
        shades=shades[::-1],
        flatten=flatten,
    )


def pick(margins: np.ndarray, count: int) -> list[tuple[str, int]]:
    """Return (label, index) of up to `count` documents, evenly spread over the ranks of their margins.

    The lowest margin comes first: bad pairs are there.
    """
    order = np.argsort(margins, kind="stable")
    last = min(count, len(order)) - 1
    names: dict[float, str] = {rank: f"{100 * rank / last:.0f} % of margins are lower" for rank in range(1, last)}
    names |= {last / 2: "median margin"} | {last: "highest margin"} | {0: "lowest margin"}
    return [(names[rank], int(order[round(rank * (len(order) - 1) / max(last, 1))])) for rank in range(last + 1)]


def _spelled_out(value: Any) -> Any:
    """Show invisible characters, and those that change the text direction, as code points."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(f"⟨U+{ord(c):04X}⟩" if c not in _NEEDED and unicodedata.category(c) in _HIDDEN else c for c in value)
