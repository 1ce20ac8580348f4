"""What every reader gives: records, each with its place and with a mark from which it can be read again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

from nemo_longpo.errors import InputError

Mark = tuple[int, int]
"""A place in a file, for its own reader: (byte offset, lines before it) or (rows before it, 0)."""

START: Mark = (0, 0)


@dataclass(frozen=True)
class Record:
    """`name` serves as the id of a record that has none; `where` is its place, for messages."""

    name: str
    where: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """What is read of a table: all `required` columns, and the `optional` ones that it has.

    `advice` says what to do where a required one is missing. `batch` rows are in memory together.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    advice: str
    batch: int = 16

    def of(self, found: Sequence[str], where: str) -> list[str]:
        """Return the columns to read out of those of a table.

        Raises InputError if a required one is missing, or if there are two of one name (Parquet allows it).
        """
        for name in self.required:
            if name not in found:
                raise InputError(f"{where} has no column {name!r} (it has {', '.join(found)}); {self.advice}")
        chosen = [name for name in dict.fromkeys((*self.optional, *self.required)) if name in found]
        for name in chosen:
            if found.count(name) > 1:
                raise InputError(
                    f"{where} has {found.count(name)} columns {name!r}; rename all but the one that is meant"
                )
        return chosen


class Reader(Protocol):
    """One open file. It keeps its place, so that reading marks in rising order never goes back to the beginning."""

    def marks(self) -> Iterator[Mark]:
        """Yield the mark of every record, without parsing any."""

    def records(self, start: Mark = START) -> Iterator[tuple[Mark, Record]]:
        """Yield the records from a mark on. Raises InputError for an unreadable one, naming the file and the row."""

    def close(self) -> None: ...


class DataFile(Protocol):
    """A file or a table of a dataset, cheap to send to another process."""

    @property
    def name(self) -> str:
        """Unique within one input; the records in it are named after it."""

    @property
    def size(self) -> int:
        """Bytes of what is in it; to notice a change."""

    @property
    def disk_size(self) -> int:
        """Bytes of the files that it is made of; to notice a change."""

    def open(self, columns: Columns) -> Reader:
        """Raises InputError if it is not what its name says, or lacks a required column."""


@dataclass
class Piece:
    """Records of one file that follow each other."""

    file: int
    start: Mark
    rows: int = 0


def read_parts(
    files: Sequence[DataFile], columns: Columns, parts: Sequence[Sequence[Piece]], wanted: Callable[[int], bool]
) -> Iterator[tuple[int, list[Record]]]:
    """Yield the numbers and records of those parts that are `wanted`; it is asked right before a part is read.

    The file that was read last stays open, so that reading on is cheap in compressed files too.
    """
    opened: int | None = None
    with ExitStack() as stack:
        for number, pieces in enumerate(parts):
            if not wanted(number):
                continue
            records: list[Record] = []
            for piece in pieces:
                if piece.file != opened:
                    stack.close()
                    reader = stack.enter_context(closing(files[piece.file].open(columns)))
                    opened = piece.file
                records += [record for _, record in islice(reader.records(piece.start), piece.rows)]
            yield number, records


def arrow_row(table: Any, names: list[str], index: int) -> dict[str, Any]:
    """Return one row of an Arrow table or batch. Lists are views of its memory where possible."""
    return {name: _value(table.column(name)[index]) for name in names}


def _value(scalar: Any) -> Any:
    if not isinstance(scalar, pa.ListScalar | pa.LargeListScalar) or not scalar.is_valid:
        return scalar.as_py()
    if pa.types.is_list(scalar.type.value_type) or pa.types.is_large_list(scalar.type.value_type):
        return [_value(inner) for inner in scalar.values]
    return scalar.values.to_numpy(zero_copy_only=False)
