"""Find the files and datasets of an input, in an order that depends on their names alone."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from nemo_longpo.errors import InputError

from .files import JSON_SUFFIXES, PARQUET_SUFFIX, JsonLinesReader, ParquetReader, TextReader, unreadable
from .hf_datasets import PREFIX, is_saved, named_splits, saved_splits
from .records import Columns, DataFile, Reader

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
    """What counts as a file to read: JSONL, Parquet, saved and named datasets, and text by its suffixes.

    Empty files with one of the suffixes `may_be_empty` are passed over. `split` is the one to take of datasets with
    several; None takes all.
    """

    text_suffixes: tuple[str, ...] = ()
    may_be_empty: tuple[str, ...] = ()
    split: str | None = None

    def find(self, given: str) -> list[DataFile]:
        """A file, all files below a directory (links to directories are not followed), or a dataset.

        Raises InputError if there is nothing, or nothing that can be read.
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
