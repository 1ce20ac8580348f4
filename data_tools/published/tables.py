"""Files and saved datasets as numbered rows, of which a stretch can be loaded without holding the rest.

A row is a dict of columns: lists of ids as arrays (or as lists, from JSON), lists of lists as lists of arrays.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from nemo_longpo.errors import InputError, one_line

from ..corpus.documents import refuse_two_of_one_name
from ..jsonl import DECOMPRESSION_ERRORS, open_lines, parse_line

Load = Callable[[], list[dict[str, Any]]]


class Table(Protocol):
    """`unit` is what a row is called in messages; rows are counted from 1 there."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def rows(self) -> int: ...

    def size(self) -> int:
        """Bytes, to notice that the data changed."""

    def blocks(self, rows: int) -> Iterator[Load]:
        """Loaders of so many rows each, in order; each is called before the next one is asked for, or never."""


@dataclass(frozen=True)
class JsonlTable:
    path: Path
    name: str
    rows: int
    unit: str = "record"

    @staticmethod
    def open(path: Path, name: str) -> "JsonlTable":
        with open_lines(path) as file:
            return JsonlTable(path, name, sum(bool(line.strip()) for line in _lines(file, path)))

    def size(self) -> int:
        return self.path.stat().st_size

    def blocks(self, rows: int) -> Iterator[Load]:
        with open_lines(self.path) as file:
            filled = ((number, line) for number, line in enumerate(_lines(file, self.path), 1) if line.strip())
            for _ in range(0, self.rows, rows):
                yield partial(self._parse, list(islice(filled, rows)))

    def _parse(self, lines: list[tuple[int, bytes]]) -> list[dict[str, Any]]:
        return [parse_line(line, f"{self.path}, line {number}") for number, line in lines]


@dataclass(frozen=True)
class ParquetTable:
    path: Path
    name: str
    rows: int
    columns: list[str]
    unit: str = "row"

    @staticmethod
    def open(path: Path, name: str, wanted: tuple[str, ...], required: tuple[str, ...]) -> "ParquetTable":
        file = _open_parquet(path)
        columns = choose_columns(file.schema_arrow.names, wanted, required, name)
        return ParquetTable(path, name, file.metadata.num_rows, columns)

    def size(self) -> int:
        return self.path.stat().st_size

    def blocks(self, rows: int) -> Iterator[Load]:
        return (partial(self._load, start, min(start + rows, self.rows)) for start in range(0, self.rows, rows))

    def _load(self, start: int, stop: int) -> list[dict[str, Any]]:
        import pyarrow as pa

        try:
            return self._read(start, stop)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(self.path, error) from error

    def _read(self, start: int, stop: int) -> list[dict[str, Any]]:
        """From the row groups that hold some of the rows, a few rows at a time: a group can be larger than memory."""
        file = _open_parquet(self.path)
        records: list[dict[str, Any]] = []
        first = 0
        for group in range(file.num_row_groups):
            place, first = first, first + file.metadata.row_group(group).num_rows
            if place >= stop or first <= start:
                continue
            for batch in file.iter_batches(batch_size=4, row_groups=[group], columns=self.columns):
                records += [columns_of(batch, index) for index in range(len(batch)) if start <= place + index < stop]
                place += len(batch)
                if place >= stop:
                    break
        return records


@dataclass(frozen=True)
class SavedTable:
    """A `datasets.Dataset`, whose files are mapped into memory."""

    name: str
    dataset: Any
    columns: list[str]
    unit: str = "row"

    @property
    def rows(self) -> int:
        return self.dataset.num_rows

    def size(self) -> int:
        return sum(Path(file["filename"]).stat().st_size for file in self.dataset.cache_files)

    def blocks(self, rows: int) -> Iterator[Load]:
        return (partial(self._load, start, min(start + rows, self.rows)) for start in range(0, self.rows, rows))

    def _load(self, start: int, stop: int) -> list[dict[str, Any]]:
        table = self.dataset.select_columns(self.columns).with_format("arrow")[start:stop]
        return [columns_of(table, index) for index in range(table.num_rows)]


def choose_columns(found: list[str], wanted: tuple[str, ...], required: tuple[str, ...], name: str) -> list[str]:
    """The columns to read. Raises InputError if a required one is missing."""
    missing = [column for column in required if column not in found]
    if missing:
        raise InputError(
            f"{name} has no column {missing[0]!r} (it has {', '.join(found)}); a tokenised LongPO dataset has "
            f"{', '.join(required)}"
        )
    refuse_two_of_one_name(found, wanted, name)
    return [column for column in wanted if column in found]


def columns_of(table: Any, index: int) -> dict[str, Any]:
    """One row of an Arrow table or batch; lists are views of its memory where possible."""
    return {name: _value(table.column(name)[index]) for name in table.schema.names}


def _value(scalar: Any) -> Any:
    import pyarrow as pa

    if not isinstance(scalar, pa.ListScalar | pa.LargeListScalar) or not scalar.is_valid:
        return scalar.as_py()
    if pa.types.is_list(scalar.type.value_type) or pa.types.is_large_list(scalar.type.value_type):
        return [_value(inner) for inner in scalar.values]
    return scalar.values.to_numpy(zero_copy_only=False)


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a readable Parquet file ({one_line(error)}); download it again")


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except DECOMPRESSION_ERRORS as error:
        raise InputError(f"{path} cannot be read ({error}); download it again") from error
