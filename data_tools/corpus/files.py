"""Find the files of a corpus, in an order that depends on their names alone."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from nemo_longpo.errors import InputError

from .documents import Fields, Reader
from .domains import TEXT_SUFFIXES, domain_of
from .huggingface import PREFIX, is_saved, named_splits, saved_splits
from .readers import JSON_SUFFIXES, PARQUET_SUFFIXES, JsonLinesReader, ParquetReader, TextReader, unreadable

_OTHERS = f"{', '.join((*JSON_SUFFIXES, *PARQUET_SUFFIXES))} or a dataset that was saved to disk"


class CorpusFile(Protocol):
    """Something with documents in it, cheap to send to another process."""

    @property
    def name(self) -> str:
        """Unique within one input; the documents in it are named after it."""

    @property
    def size(self) -> int:
        """In bytes; to notice a change."""

    def open(self, fields: Fields) -> Reader:
        """Raises InputError if it is not what its name says."""


@dataclass(frozen=True)
class PlainFile:
    """A file on disk. `name` is its path below the directory that was given."""

    path: Path
    name: str
    size: int

    def open(self, fields: Fields) -> Reader:
        name = self.path.name.lower()
        if name.endswith(JSON_SUFFIXES):
            return JsonLinesReader(self.path, self.name, fields)
        if name.endswith(PARQUET_SUFFIXES):
            return ParquetReader(self.path, self.name, fields)
        return TextReader(self.path, self.name)


def find_files(given: str) -> list[CorpusFile]:
    """A file, the files of known kinds below a directory (links to directories are not followed), or a dataset.

    Raises InputError if there is nothing, or nothing that can be read.
    """
    if given.startswith(PREFIX):
        return [*named_splits(given)]
    path = Path(given)
    if path.is_file():
        if not _is_known(path.name):
            raise InputError(
                f"{path} has an unknown suffix; give plain text (.txt, .md, .rst, .tex or source code), {_OTHERS}"
            )
        return [_plain(path, path.name)]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give text, JSONL or Parquet files, or directories of them")
    files = sorted(_walk(path), key=lambda file: file.name)
    if not files:
        raise InputError(f"{path} holds no document: no plain text, {_OTHERS}; give a directory of documents")
    return files


def _walk(top: Path) -> Iterator[CorpusFile]:
    for directory, below, names in os.walk(top, onerror=_refuse):
        folder = Path(directory)
        if is_saved(folder):
            below.clear()
            yield from saved_splits(folder, top.name if folder == top else folder.relative_to(top).as_posix())
            continue
        for name in filter(_is_known, names):
            file = _plain(folder / name, (folder / name).relative_to(top).as_posix())
            # Empty files are usual in source code, and a sign of trouble elsewhere.
            if file.size or domain_of(name, "") != "code":
                yield file


def _is_known(name: str) -> bool:
    return name.lower().endswith((*TEXT_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES))


def _plain(path: Path, name: str) -> PlainFile:
    try:
        return PlainFile(path, name, path.stat().st_size)
    except OSError as error:
        raise unreadable(path, error) from error


def _refuse(error: OSError) -> NoReturn:
    raise unreadable(Path(error.filename), error) from error
