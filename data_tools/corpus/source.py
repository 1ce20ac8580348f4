"""A corpus as numbered parts of documents, cut by a single pass over it."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nemo_longpo.errors import InputError

from ..doc_ids import hash_id, refuse_repeated_ids
from ..runner.rows import PartLimits, Row
from .documents import Fields, Mark
from .files import CorpusFile, find_files


@dataclass
class _Piece:
    """Rows of one file that follow each other."""

    file: int
    start: Mark
    rows: int = 0


class CorpusSource:
    """Files, directories and datasets as parts of at most `rows_per_part` documents and `bytes_per_part` bytes of
    UTF-8 (or one document that is longer): rows with "doc_id" and "document".

    Making it reads the corpus once: every document is checked and the place of every part is noted. That needs the
    memory of one document (of 16 in Parquet files and datasets), 8 bytes per document, and about 300 per part and
    file. Parts depend on nothing but the files, and are read without parsing what lies before them. Raises InputError
    for what is not a document, doubled ids and an empty corpus, each with its place.
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
        self._files: list[CorpusFile] = [file for path in paths for file in find_files(path)]
        self._parts: list[list[_Piece]] = []
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
        """See Source. The file that was read last stays open, so that reading on is cheap in compressed files too."""
        opened: int | None = None
        with ExitStack() as stack:
            for number, part in enumerate(self._parts):
                if not wanted(number):
                    continue
                rows: list[Row] = []
                for piece in part:
                    if piece.file != opened:
                        stack.close()
                        reader = stack.enter_context(closing(self._files[piece.file].open(self._fields)))
                        opened = piece.file
                    rows += [row for _, row in islice(reader.rows(piece.start), piece.rows)]
                yield number, rows

    def _rows(self) -> Iterator[tuple[int, Mark, Row]]:
        """Every document, with the number of its file and its mark."""
        for number, file in enumerate(self._files):
            with closing(file.open(self._fields)) as reader:
                for mark, row in reader.rows():
                    yield number, mark, row

    def _index(self) -> "array[int]":
        """Cut the parts; returns a hash of every document's id."""
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
                pieces.append(_Piece(file, mark))
            pieces[-1].rows += 1
            hashes.append(hash_id(row.record["doc_id"]))
        return hashes


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
