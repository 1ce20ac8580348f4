"""Find the files and datasets of an input, in an order that depends on their names alone.

Datasets of the Hugging Face library are saved to disk or given by name. The library is imported only for those.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nemo_longpo.errors import InputError, one_line

from .files import JSON_SUFFIXES, PARQUET_SUFFIX, JsonLinesReader, ParquetReader, TextReader, unreadable
from .records import START, Columns, DataFile, Mark, Reader, Record, arrow_row

PREFIX = "hf:"
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, RecursionError)
"""Errors that the library raises for descriptions that it has not written: it does not check them."""


@dataclass(frozen=True)
class DatasetSplit:
    """One table. The dataset itself is a memory map of files, so it goes to another process as their names."""

    dataset: Any
    name: str
    where: str

    @property
    def size(self) -> int:
        return self.dataset.data.nbytes

    @property
    def disk_size(self) -> int:
        return sum(Path(file["filename"]).stat().st_size for file in self.dataset.cache_files)

    def open(self, columns: Columns) -> "DatasetReader":
        return DatasetReader(self, columns)


class DatasetReader:
    """Reads rows, named "DATASET:ROW". A mark is (rows before a row, 0)."""

    def __init__(self, split: DatasetSplit, columns: Columns):
        self._split, self._batch = split, columns.batch
        self._names = columns.of(split.dataset.column_names, split.where)
        self._table = split.dataset.select_columns(self._names).with_format("arrow")

    def marks(self) -> Iterator[Mark]:
        return ((number, 0) for number in range(self._table.num_rows))

    def records(self, start: Mark = START) -> Iterator[tuple[Mark, Record]]:
        for first in range(start[0], self._table.num_rows, self._batch):
            batch = self._table[first : first + self._batch]
            for index in range(batch.num_rows):
                row = first + index + 1
                content = arrow_row(batch, self._names, index)
                yield (row - 1, 0), Record(f"{self._split.name}:{row}", f"{self._split.where}, row {row}", content)

    def close(self) -> None:
        """Do nothing: the map stays for the next reader."""


def is_saved(path: Path) -> bool:
    """Return whether `save_to_disk` has made this directory."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def saved_splits(path: Path, name: str, only: str | None) -> list[DatasetSplit]:
    """Return the dataset in a directory; see `named_splits` for `only`. Raises InputError if it cannot be read."""
    datasets = _library(str(path))
    try:
        found = datasets.load_from_disk(str(path))
    except _DAMAGE as error:
        raise InputError(f"{path} is not a readable dataset ({one_line(error)}); copy or save it again") from error
    return _splits(found, name, str(path), only)


def named_splits(spec: str, only: str | None) -> list[DatasetSplit]:
    """Return the dataset `hf:OWNER/NAME` or its split `hf:OWNER/NAME:SPLIT`, downloaded if it is not in the cache.

    If it has several splits, return all of them, each named after its split; with `only`, that one, named after the
    dataset. Raises InputError if it cannot be loaded or has no such split.
    """
    datasets = _library(spec)
    name, split = name_and_split(spec)
    try:
        found = datasets.load_dataset(name, split=split)
    except ConnectionError as error:
        raise InputError(
            f"{spec} is not in the cache of Hugging Face datasets, and the hub cannot be reached ({one_line(error)}); "
            "download it on a machine with a network, `save_to_disk` it, and give that directory"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{spec} cannot be loaded ({one_line(error)}); check owner, name and split, or `save_to_disk` the dataset "
            "and give that directory"
        ) from error
    return _splits(found, f"{name}/{split}" if split else name, spec, only)


def name_and_split(spec: str) -> tuple[str, str | None]:
    """Split `hf:OWNER/NAME[:SPLIT]` into name and split."""
    name, _, split = spec.removeprefix(PREFIX).partition(":")
    return name, split or None


def _library(wanted_for: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{wanted_for} needs the library of Hugging Face datasets: pip install datasets") from error
    return datasets


def _splits(found: Any, name: str, where: str, only: str | None) -> list[DatasetSplit]:
    if not isinstance(found, dict):
        return [DatasetSplit(found, name, where)]
    if only is None:
        return [DatasetSplit(table, f"{name}/{split}", f"{where}, split {split}") for split, table in found.items()]
    if only not in found:
        raise InputError(f"{where} has no split {only!r}; choose one of {', '.join(found)} with --split")
    return [DatasetSplit(found[only], name, where)]


_TABLES = f"{', '.join(JSON_SUFFIXES)}, {PARQUET_SUFFIX} or a dataset that was saved to disk"


@dataclass(frozen=True)
class PlainFile:
    """A file on disk. `name` is its path below the directory that was given."""

    path: Path
    name: str
    size: int

    @property
    def disk_size(self) -> int:
        return self.size

    def open(self, columns: Columns) -> Reader:
        name = self.path.name.lower()
        kind = JsonLinesReader if name.endswith(JSON_SUFFIXES) else TextReader
        return (ParquetReader if name.endswith(PARQUET_SUFFIX) else kind)(self.path, self.name, columns)


@dataclass(frozen=True)
class Finder:
    """Finds files to read: JSONL, Parquet, saved and named datasets, and text by its suffixes.

    Empty files with one of the suffixes `may_be_empty` are skipped. `split` is the one to take of datasets with
    several; None takes all.
    """

    text_suffixes: tuple[str, ...] = ()
    may_be_empty: tuple[str, ...] = ()
    split: str | None = None

    def find(self, given: str) -> list[DataFile]:
        """Return a file, all files below a directory (links to directories are not followed), or a dataset.

        Raises InputError if nothing is found, or nothing that can be read.
        """
        if given.startswith(PREFIX):
            return [*named_splits(given, self.split)]
        path, text = Path(given), "plain text (.txt, .md, .rst, .tex or source code), " if self.text_suffixes else ""
        if path.is_file():
            if not self._knows(path.name):
                raise InputError(f"{path} has an unknown suffix; give {text}{_TABLES}")
            return [_plain(path, path.name)]
        if not path.is_dir():
            raise InputError(f"{path} does not exist; give {text}{_TABLES}, a directory of these, or hf:OWNER/NAME")
        files = sorted(self._walk(path), key=lambda file: file.name)
        if not files:
            no_text = "plain text, " if text else ""
            raise InputError(f"{path} holds no document: no {no_text}{_TABLES}; give a directory of documents")
        return files

    def _knows(self, name: str) -> bool:
        return name.lower().endswith((*self.text_suffixes, *JSON_SUFFIXES, PARQUET_SUFFIX))

    def _walk(self, top: Path) -> Iterator[DataFile]:
        for directory, below, names in os.walk(top, onerror=_refuse):
            folder = Path(directory)
            if is_saved(folder):
                below.clear()
                name = top.name if folder == top else folder.relative_to(top).as_posix()
                yield from saved_splits(folder, name, self.split)
                continue
            for name in filter(self._knows, names):
                file = _plain(folder / name, (folder / name).relative_to(top).as_posix())
                if file.size or not name.lower().endswith(self.may_be_empty):
                    yield file


def _plain(path: Path, name: str) -> PlainFile:
    try:
        return PlainFile(path, name, path.stat().st_size)
    except OSError as error:
        raise unreadable(path, error) from error


def _refuse(error: OSError) -> NoReturn:
    raise unreadable(Path(error.filename), error) from error
