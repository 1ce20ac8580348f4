"""Readers of plain text, JSON lines (compressed or not) and Parquet."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from nemo_longpo.errors import InputError, one_line

from ..jsonl import DECOMPRESSION_ERRORS, open_lines, parse_line
from ..runner.rows import Row
from .documents import START, Fields, Mark, check_columns, make_row

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET_SUFFIXES = (".parquet",)

_BUFFER = 1 << 20  # bytes
_BATCH = 16  # rows of a Parquet file that are in memory together


class TextReader:
    """A file that is one document, named by its path."""

    def __init__(self, path: Path, name: str):
        self._path = path
        self._name = name

    def rows(self, start: Mark = START) -> Iterator[tuple[Mark, Row]]:
        try:
            text = self._path.read_bytes().decode("utf-8").removeprefix("\ufeff")
        except OSError as error:
            raise unreadable(self._path, error) from error
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise InputError(
                f"{self._path}: not UTF-8 (at byte {error.start}, in line {line}); convert the file to UTF-8"
            ) from error
        if not text.strip():
            raise InputError(f"{self._path} is empty; remove the file or give it some text")
        yield START, make_row({"text": text}, self._name, str(self._path), Fields())

    def close(self) -> None:
        """Nothing stays open."""


class JsonLinesReader:
    """A document per line, named "FILE:LINE" if it names itself no other way. Blank lines count as lines.

    A mark is (bytes, lines) before a row, of the uncompressed file. Compressed files can only be read forwards:
    what lies in front of a mark is decompressed but not parsed.
    """

    def __init__(self, path: Path, name: str, fields: Fields):
        self._path = path
        self._name = name
        self._fields = fields
        self._compressed = path.suffix.lower() in (".gz", ".zst")
        self._file: BinaryIO | None = None
        self._position = 0

    def rows(self, start: Mark = START) -> Iterator[tuple[Mark, Row]]:
        offset, number = start
        try:
            file = self._open_at(offset)
            for line in file:
                mark = (self._position, number)
                self._position += len(line)
                number += 1
                if line.strip():
                    where = f"{self._path}, line {number}"
                    yield mark, make_row(parse_line(line, where), f"{self._name}:{number}", where, self._fields)
        except DECOMPRESSION_ERRORS as error:
            raise unreadable(self._path, error) from error

    def _open_at(self, offset: int) -> BinaryIO:
        if self._file is None or (self._compressed and offset < self._position):
            self.close()
            self._file, self._position = open_lines(self._path), 0
        if not self._compressed:
            self._position = self._file.seek(offset)
        while self._position < offset:
            skipped = self._file.read(min(_BUFFER, offset - self._position))
            if not skipped:
                raise InputError(f"{self._path} has become shorter while it was read; start again with the whole file")
            self._position += len(skipped)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class ParquetReader:
    """A document per row, named "FILE:ROW" if it names itself no other way. A mark is (rows before a row, 0)."""

    def __init__(self, path: Path, name: str, fields: Fields):
        import pyarrow as pa
        import pyarrow.parquet

        self._path = path
        self._name = name
        self._fields = fields
        self._errors = (pa.ArrowException, OSError, UnicodeDecodeError)
        try:
            # The buffer keeps a column from being read in one piece per row group.
            self._parquet = pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, page_checksum_verification=True)
        except self._errors as error:
            raise self._corrupt(error) from error
        self._columns = check_columns(self._parquet.schema_arrow.names, str(path), fields)
        metadata = self._parquet.metadata
        self._count = metadata.num_rows
        self._group_ends = list(accumulate(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)))
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._batch_start = self._batch_end = -1

    def rows(self, start: Mark = START) -> Iterator[tuple[Mark, Row]]:
        number = start[0]
        self._go_to(number)
        while number < self._count:
            if number == self._batch_end:
                self._next_batch()
            where = f"{self._path}, row {number + 1}"
            record = self._record(number - self._batch_start, where)
            yield (number, 0), make_row(record, f"{self._name}:{number + 1}", where, self._fields)
            number += 1

    def _go_to(self, number: int) -> None:
        """Have the batch with this row at hand: read on, or begin with the row's group if that is nearer."""
        group = bisect_right(self._group_ends, number)
        group_start = self._group_ends[group - 1] if group else 0
        if not self._batch_start <= number or self._batch_end < group_start:
            groups = range(group, len(self._group_ends))
            self._batches = self._parquet.iter_batches(_BATCH, row_groups=groups, columns=self._columns)
            self._batch_start = self._batch_end = group_start
        while self._batch_end <= number < self._count:
            self._next_batch()

    def _next_batch(self) -> None:
        try:
            self._batch = next(self._batches)
        except (StopIteration, *self._errors) as error:
            raise self._corrupt(error) from error
        self._batch_start, self._batch_end = self._batch_end, self._batch_end + self._batch.num_rows

    def _record(self, index: int, where: str) -> dict[str, Any]:
        try:
            return {name: self._batch.column(name)[index].as_py() for name in self._columns}
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 (byte {error.start}); convert the file to UTF-8") from error

    def close(self) -> None:
        self._parquet.close()

    def _corrupt(self, error: Exception) -> InputError:
        return InputError(f"{self._path} is not a readable Parquet file ({one_line(error)}); copy or write it again")


def unreadable(path: Path, error: Exception) -> InputError:
    """What to say of a file that the system or a decompressor cannot read."""
    return InputError(f"{path} cannot be read ({one_line(error)}); check its permissions, or copy or write it again")
