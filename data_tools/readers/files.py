"""Readers of plain text, JSON lines (compressed or not) and Parquet."""

import gzip
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from io import BufferedReader
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet

from nemo_longpo.errors import InputError, one_line
from nemo_longpo.json_input import parse_json_object

from .records import START, Columns, Mark, Record, arrow_row

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET_SUFFIX = ".parquet"

_BUFFER = 1 << 20  # bytes


class TextReader:
    """Reads a file that is one document, named by its path. Its text is the value of the first required column."""

    def __init__(self, path: Path, name: str, columns: Columns):
        self._path, self._name, self._field = path, name, columns.required[0]

    def marks(self) -> Iterator[Mark]:
        yield START

    def records(self, start: Mark = START) -> Iterator[tuple[Mark, Record]]:
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
        yield START, Record(self._name, str(self._path), {self._field: text})

    def close(self) -> None:
        """Nothing stays open."""


class JsonLinesReader:
    """Reads an object per line, named "FILE:LINE". Blank lines count as lines. All fields are given, whatever columns
    are asked for.

    A mark is (bytes, lines) before a record, of the uncompressed file. Compressed files can only be read forwards:
    the data before a mark is decompressed but not parsed.
    """

    def __init__(self, path: Path, name: str, _: Columns):
        self._path, self._name = path, name
        self._compressed = path.suffix.lower() in (".gz", ".zst")
        self._file: BinaryIO | None = None
        self._position = 0

    def marks(self) -> Iterator[Mark]:
        return (mark for mark, _ in self._lines(START))

    def records(self, start: Mark = START) -> Iterator[tuple[Mark, Record]]:
        for mark, line in self._lines(start):
            number = mark[1] + 1
            where = f"{self._path}, line {number}"
            yield (
                mark,
                Record(f"{self._name}:{number}", where, parse_json_object(line, where, "correct or remove the line")),
            )

    def _lines(self, start: Mark) -> Iterator[tuple[Mark, bytes]]:
        """Yield the lines from a mark on that are not blank."""
        offset, number = start
        try:
            for line in self._open_at(offset):
                mark = (self._position, number)
                self._position += len(line)
                number += 1
                if line.strip():
                    yield mark, line
        except (OSError, EOFError, zlib.error) as error:
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
    """Reads rows, named "FILE:ROW". A mark is (rows before a row, 0)."""

    def __init__(self, path: Path, name: str, columns: Columns):
        self._path, self._name, self._batch_rows = path, name, columns.batch
        self._errors = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
        try:
            # The buffer keeps a column from being read in one piece per row group.
            self._parquet = pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, page_checksum_verification=True)
        except self._errors as error:
            raise self._corrupt(error) from error
        self._columns = columns.of(self._parquet.schema_arrow.names, str(path))
        metadata = self._parquet.metadata
        self._count = metadata.num_rows
        self._group_ends = list(accumulate(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)))
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._batch_start = self._batch_end = -1

    def marks(self) -> Iterator[Mark]:
        return ((number, 0) for number in range(self._count))

    def records(self, start: Mark = START) -> Iterator[tuple[Mark, Record]]:
        number = start[0]
        self._go_to(number)
        while number < self._count:
            if number == self._batch_end:
                self._next_batch()
            where = f"{self._path}, row {number + 1}"
            try:
                content = arrow_row(self._batch, self._columns, number - self._batch_start)
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: not UTF-8 (byte {error.start}); convert the file to UTF-8") from error
            except self._errors as error:
                raise self._corrupt(error) from error
            yield (number, 0), Record(f"{self._name}:{number + 1}", where, content)
            number += 1

    def _go_to(self, number: int) -> None:
        """Load the batch with this row: read on, or start at the row's group if that is nearer."""
        group = bisect_right(self._group_ends, number)
        group_start = self._group_ends[group - 1] if group else 0
        if not self._batch_start <= number or self._batch_end < group_start:
            groups = range(group, len(self._group_ends))
            self._batches = self._parquet.iter_batches(self._batch_rows, row_groups=groups, columns=self._columns)
            self._batch_start = self._batch_end = group_start
        while self._batch_end <= number < self._count:
            self._next_batch()

    def _next_batch(self) -> None:
        try:
            self._batch = next(self._batches)
        except (StopIteration, *self._errors) as error:
            raise self._corrupt(error) from error
        self._batch_start, self._batch_end = self._batch_end, self._batch_end + self._batch.num_rows

    def close(self) -> None:
        self._parquet.close()

    def _corrupt(self, error: Exception) -> InputError:
        return InputError(f"{self._path} is not a readable Parquet file ({one_line(error)}); copy or write it again")


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the error for a file that the system or a decompressor cannot read."""
    return InputError(f"{path} cannot be read ({one_line(error)}); check its permissions, or copy or write it again")


def open_lines(path: Path) -> BinaryIO:
    """Open a file, decompressed by its suffix. Zero bytes after gzip data, the padding of tapes and archives, are
    ignored."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if suffix == ".zst":
        return BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _BUFFER)
    return path.open("rb", buffering=_BUFFER)
