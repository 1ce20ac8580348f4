"""A corpus as numbered parts of documents, cut by a single pass over it."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from nemo_longpo.errors import InputError

from ..pairs import hash_id, refuse_repeated_ids
from ..readers.find import Finder
from ..readers.records import Columns, Mark, Piece, Record, read_parts
from ..runner import PartLimits, Row
from .segmentation import CODE_SUFFIXES, TEXT_SUFFIXES

# Empty files are usual in source code, and an error elsewhere.
_FINDER = Finder(TEXT_SUFFIXES, may_be_empty=CODE_SUFFIXES)


@dataclass(frozen=True)
class Fields:
    """The names under which records hold a document's text and, if they have one, its id."""

    text: str = "text"
    id: str = "id"


class CorpusSource:
    """Files, directories and datasets as parts of at most `rows_per_part` documents and `bytes_per_part` bytes of
    UTF-8 (or one document that is longer): rows with "doc_id" and "document".

    The constructor reads the corpus once: it checks every document and notes the place of every part. This needs the
    memory of one document (of 16 in Parquet files and datasets), 8 bytes per document, and about 300 per part and
    file. Parts depend only on the files, and are read without parsing what precedes them. Raises InputError, with the
    place, if a record is not a document, an id occurs twice or the corpus is empty.
    """

    def __init__(
        self,
        paths: list[str],
        *,
        rows_per_part: int = 32,
        bytes_per_part: int | None = None,
        fields: Fields | None = None,
    ):
        self._limits = PartLimits(rows_per_part, bytes_per_part)
        self._fields = fields or Fields()
        self._columns = Columns(
            (self._fields.text,), (self._fields.id,), "name the column that holds the text with --text-field"
        )
        self._files = [file for path in paths for file in _FINDER.find(path)]
        self._parts: list[list[Piece]] = []
        hashes = self._index()
        if not hashes:
            raise InputError(f"the corpus {', '.join(paths)} holds no documents; give files with text")
        refuse_repeated_ids(hashes, lambda: (row for _, _, row in self._rows()))

    @property
    def rows_in_parts(self) -> list[int]:
        return [sum(piece.rows for piece in part) for part in self._parts]

    def identity(self) -> dict[str, Any]:
        names = json.dumps([(file.name, file.size) for file in self._files])
        return {
            "documents": sum(self.rows_in_parts),
            "files": len(self._files),
            "bytes": sum(file.size for file in self._files),
            "names_and_sizes_sha256": hashlib.sha256(names.encode()).hexdigest(),
        } | self._limits.identity()

    def history(self) -> dict[str, Any]:
        return {}

    def parts(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        for number, records in read_parts(self._files, self._columns, self._parts, wanted):
            yield number, [_document(record, self._fields) for record in records]

    def _rows(self) -> Iterator[tuple[int, Mark, Row]]:
        """Yield every document, with the number of its file and its mark."""
        for number, file in enumerate(self._files):
            with closing(file.open(self._columns)) as reader:
                for mark, record in reader.records():
                    yield number, mark, _document(record, self._fields)

    def _index(self) -> "array[int]":
        """Cut the parts; return a hash of every document's id."""
        hashes = array("Q")
        rows = size = 0  # of the last part
        for file, mark, row in self._rows():
            more = _utf8_length(row.record["document"])
            if not self._parts or self._limits.is_full(rows, size, more):
                self._parts.append([])
                rows = size = 0
            rows, size = rows + 1, size + more
            pieces = self._parts[-1]
            if not pieces or pieces[-1].file != file:
                pieces.append(Piece(file, mark))
            pieces[-1].rows += 1
            hashes.append(hash_id(row.record["doc_id"]))
        return hashes


def _document(record: Record, fields: Fields) -> Row:
    """Return a record of a corpus as a row. Raises InputError if its text is missing or empty, or its id is
    neither text nor a whole number."""
    content, where = record.content, record.where
    if fields.text not in content:
        raise InputError(
            f"{where}: field {fields.text!r} is missing (there are {', '.join(map(repr, content)) or 'none'}); name "
            "the field that holds the text with --text-field"
        )
    text, doc_id = content[fields.text], content.get(fields.id)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: field {fields.text!r} must be non-empty text; correct or remove the document")
    if doc_id is not None and (not isinstance(doc_id, str | int) or isinstance(doc_id, bool)):
        raise InputError(f"{where}: field {fields.id!r} must be text or a whole number, not {type(doc_id).__name__}")
    name = record.name if doc_id is None else str(doc_id)
    for field, value in ((fields.text, text), (fields.id, name)):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: field {field!r} holds half of a surrogate pair (at character {error.start}), which is not "
                "text; correct or remove the document"
            ) from error
    return Row({"doc_id": name, "document": text}, where)


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
