"""What words RULER's tasks need, and how a `--wording` file says them for a small vocabulary."""

import string
from dataclasses import dataclass, fields
from pathlib import Path

from nemo_longpo import json_input, typed_fields
from nemo_longpo.errors import InputError

_ADVICE = "docs/evaluation.md shows such a file"


@dataclass(frozen=True, kw_only=True)
class NeedleWords:
    """Needles in a haystack. `template_of_one` and `prefix_of_one` are for a question with one answer.

    Without `keys`, keys and values are numbers, words or UUIDs, as a task has them; else `keys` maps a key to the form
    in which a question names it. `answer` is what is looked for in the model's text. `sentences` are the haystack
    in place of essays, in another order for every question. With `tokens_per_key`, a task of several keys has one in so
    many tokens; without, four. The separators are between keys of one question.
    """

    template: str
    needle: str
    repeat: str
    template_of_one: str = ""
    prefix: str = ""
    prefix_of_one: str = ""
    answer: str = "{value}"
    sentences: tuple[str, ...] = ()
    keys: dict[str, str] | None = None
    values: tuple[str, ...] = ()
    separator: str = ", "
    last_separator: str = ", and "
    tokens_per_key: int = 0
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ChainWords:
    """Variable tracking. `noises` are the haystack's units, one drawn for each place.

    Without `variables` and `values` they are random letters and numbers. With `example`, a solved question comes first.
    """

    template: str
    first: str
    link: str
    noises: tuple[str, ...]
    prefix: str = ""
    variables: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    example: bool = False
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ListWords:
    """The most common of `words`, each in the form of `item`; `common` of them occur more often than the others."""

    template: str
    words: tuple[str, ...]
    item: str = "{word}"
    prefix: str = ""
    common: int = 10
    example: bool = False
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class CodeWords:
    """The three most frequent of coded words after `noise`. Without `words` they are six random letters."""

    template: str
    noise: str
    prefix: str = ""
    words: tuple[str, ...] = ()
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class DocumentWords:
    """Questions about one of many documents."""

    template: str
    document: str
    prefix: str = ""
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Wording:
    """All words. A file of one's own may leave out tasks. Texts have their places in braces: {context}, {query}, …"""

    needles: NeedleWords | None = None
    chains: ChainWords | None = None
    common_words: ListWords | None = None
    frequent_words: CodeWords | None = None
    documents: DocumentWords | None = None


# Text -> the places that it must have, and those it may have.
_PLACES: dict[str, tuple[set[str], set[str]]] = {
    "needles.template": ({"context", "query"}, {"type_needle_v"}),
    "needles.template_of_one": ({"context", "query"}, {"type_needle_v"}),
    "needles.needle": ({"key", "value"}, {"type_needle_v"}),
    "needles.answer": ({"value"}, {"key"}),
    "needles.prefix": (set(), {"type_needle_v", "query"}),
    "needles.prefix_of_one": (set(), {"type_needle_v", "query"}),
    "chains.template": ({"context", "query"}, {"num_v"}),
    "chains.prefix": (set(), {"query", "num_v"}),
    "chains.first": ({"variable", "value"}, set()),
    "chains.link": ({"variable", "previous"}, set()),
    "common_words.template": ({"context"}, {"query"}),
    "common_words.item": ({"word"}, {"number"}),
    "frequent_words.template": ({"context"}, {"query"}),
    "documents.template": ({"context", "query"}, set()),
    "documents.document": ({"document"}, {"i"}),
}
# List -> the fewest different entries, where it is given.
_LEAST = {
    "needles.keys": 5,
    "needles.values": 4,
    "chains.variables": 5,
    "chains.noises": 1,
    "frequent_words.words": 6,
}


def read(path: Path) -> Wording:
    """Read a wording file. Raises InputError with the field that cannot be used."""
    content = json_input.read_json_object(path, _ADVICE)
    for name in sorted(set(content) - {item.name for item in fields(Wording)}):
        raise InputError(f"{path}: field {name!r} is unknown; {_ADVICE}")
    wording = typed_fields.build(Wording, content, str(path), _ADVICE, exact=False)
    for place, (needed, allowed) in _PLACES.items():
        section, _, field = place.partition(".")
        text = getattr(getattr(wording, section), field, "")
        if text and not needed <= (found := _places(text, f"{path}: field {place!r}")) <= needed | allowed:
            raise InputError(
                f"{path}: field {place!r} has the places {sorted(found)} and needs {sorted(needed)}"
                f"{f', beside which it may have {sorted(allowed)}' if allowed else ''}; {_ADVICE}"
            )
    for place, least in _LEAST.items():
        section, _, field = place.partition(".")
        given = getattr(getattr(wording, section), field, None)
        # A list that is not given is made up; noises have no other source.
        if (given or place == "chains.noises") and given is not None and len({*given}) < least:
            raise InputError(f"{path}: field {place!r} should have {least} different entries or more; {_ADVICE}")
    if (listed := wording.common_words) and not 0 < listed.common < len({*listed.words}) == len(listed.words):
        raise InputError(
            f"{path}: common_words.words should be different from each other and more than its {listed.common} common "
            f"ones; {_ADVICE}"
        )
    return wording


def _places(text: str, where: str) -> set[str]:
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"{where}: {error}; {_ADVICE}") from error
    # A form as in {value:d} is no place: it stands here with its form, and so is unknown.
    return {name + (spec or "") + (conversion or "") for _, name, spec, conversion in parsed if name is not None}
