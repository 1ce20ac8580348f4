"""What every kind of file gives: rows with "doc_id" and "document", each with the mark from which it can be read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from nemo_longpo.errors import InputError

from ..runner.rows import Row

Mark = tuple[int, int]
"""A place in a file, for its own reader: (byte offset, lines before it) or (rows before it, 0)."""

START: Mark = (0, 0)


@dataclass(frozen=True)
class Fields:
    """The names under which records hold a document's text and, if they have one, its id."""

    text: str = "text"
    id: str = "id"


class Reader(Protocol):
    """One open file. It keeps its place, so that reading marks in rising order never goes back to the beginning."""

    def rows(self, start: Mark = START) -> Iterator[tuple[Mark, Row]]:
        """The rows from a mark on. Raises InputError naming the file and the row."""

    def close(self) -> None: ...


def make_row(record: dict[str, Any], default_id: str, where: str, fields: Fields) -> Row:
    """A record of someone's corpus as a row. Raises InputError naming the field."""
    if fields.text not in record:
        raise InputError(
            f"{where}: field {fields.text!r} is missing (there are {', '.join(map(repr, record)) or 'none'}); name the "
            "field that holds the text with --text-field"
        )
    text, doc_id = record[fields.text], record.get(fields.id)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: field {fields.text!r} must be non-empty text; correct or remove the document")
    if doc_id is not None and (not isinstance(doc_id, str | int) or isinstance(doc_id, bool)):
        raise InputError(f"{where}: field {fields.id!r} must be text or a whole number, not {type(doc_id).__name__}")
    name = default_id if doc_id is None else str(doc_id)
    for field, value in ((fields.text, text), (fields.id, name)):
        _check_characters(value, field, where)
    return Row({"doc_id": name, "document": text}, where)


def check_columns(columns: list[str], where: str, fields: Fields) -> list[str]:
    """Those columns of a table that are read. Raises InputError if none holds the text."""
    if fields.text not in columns:
        raise InputError(
            f"{where} has no column {fields.text!r} (it has {', '.join(columns)}); name the column that holds the text "
            "with --text-field"
        )
    refuse_two_of_one_name(columns, (fields.id, fields.text), where)
    return [name for name in dict.fromkeys((fields.id, fields.text)) if name in columns]


def refuse_two_of_one_name(columns: list[str], wanted: Iterable[str], where: str) -> None:
    """Parquet allows it. Raises InputError if one of the wanted columns is not the only one of its name."""
    for name in wanted:
        if columns.count(name) > 1:
            raise InputError(
                f"{where} has {columns.count(name)} columns {name!r}; rename all but the one that is meant"
            )


def _check_characters(text: str, field: str, where: str) -> None:
    """JSON can spell half of a surrogate pair, which no file and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: field {field!r} holds half of a surrogate pair (at character {error.start}), which is not "
            "text; correct or remove the document"
        ) from error
