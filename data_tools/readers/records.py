"""Records as every reader yields them: each with its place and with a mark from which it can be read again."""

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
    """One record. `name` is its id if it has no other; `where` is its place, for messages."""

    name: str
    where: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns to read of a table: all `required` ones, and the `optional` ones that it has.

    `advice` says what to do if a required one is missing. `batch` rows are in memory together.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    advice: str
    batch: int = 16

    def of(self, found: Sequence[str], where: str) -> list[str]:
        """Return those columns of a table that are to be read.

        Raises InputError if a required one is missing, or if two have the same name (Parquet allows it).
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
    """One open file. It keeps its position, so that reading marks in rising order never restarts the file."""

    def marks(self) -> Iterator[Mark]:
        """Yield the mark of every record, without parsing any."""

    def records(self, start: Mark = START) -> Iterator[tuple[Mark, Record]]:
        """Yield the records from a mark on. Raises InputError, naming file and row, if one is unreadable."""

    def close(self) -> None: ...


class DataFile(Protocol):
    """A file or a table of a dataset, cheap to send to another process."""

    @property
    def name(self) -> str:
        """A name that is unique within one input; its records are named after it."""

    @property
    def size(self) -> int:
        """Bytes of its content; used to notice a change."""

    @property
    def disk_size(self) -> int:
        """Bytes of its files; used to notice a change."""

    def open(self, columns: Columns) -> Reader:
        """Open it. Raises InputError if its content does not match its name, or a required column is missing."""


@dataclass
class Piece:
    """Records of one file that follow each other."""

    file: int
    start: Mark
    rows: int = 0


def read_parts(
    files: Sequence[DataFile], columns: Columns, parts: Sequence[Sequence[Piece]], wanted: Callable[[int], bool]
) -> Iterator[tuple[int, list[Record]]]:
    """Yield the numbers and records of the parts that are `wanted`, which is called right before a part is read.

    The last file stays open, so that reading on is cheap in compressed files too.
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
