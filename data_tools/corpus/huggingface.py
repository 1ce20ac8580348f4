"""Datasets of the Hugging Face library, saved to disk or by name. It is imported only when one is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError, one_line

from ..runner.rows import Row
from .documents import START, Fields, Mark, check_columns, make_row

PREFIX = "hf:"

_BATCH = 16  # rows that are in memory together


@dataclass(frozen=True)
class DatasetSplit:
    """One table. The dataset itself is a memory map of files, so it goes to another process as their names."""

    dataset: Any
    name: str
    where: str

    @property
    def size(self) -> int:
        return self.dataset.data.nbytes

    def open(self, fields: Fields) -> "DatasetReader":
        return DatasetReader(self, fields)


class DatasetReader:
    """A document per row, named "DATASET:ROW" if it names itself no other way. A mark is (rows before a row, 0)."""

    def __init__(self, split: DatasetSplit, fields: Fields):
        self._split = split
        self._fields = fields
        self._table = split.dataset.select_columns(check_columns(split.dataset.column_names, split.where, fields))

    def rows(self, start: Mark = START) -> Iterator[tuple[Mark, Row]]:
        number = start[0]
        while number < self._table.num_rows:
            batch = self._table[number : number + _BATCH]
            for values in zip(*batch.values(), strict=True):
                where = f"{self._split.where}, row {number + 1}"
                record = dict(zip(batch, values, strict=True))
                yield (number, 0), make_row(record, f"{self._split.name}:{number + 1}", where, self._fields)
                number += 1

    def close(self) -> None:
        """Nothing to close: the map stays for the next reader."""


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` has made this directory."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def saved_splits(path: Path, name: str) -> list[DatasetSplit]:
    """The dataset in a directory, or all splits of it. Raises InputError if it cannot be read."""
    return _splits(load_saved(path), name, str(path))


_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, RecursionError)
"""What the library raises for descriptions that it has not written: it does not look at them before it uses them."""


def load_saved(path: Path) -> Any:
    """A `Dataset` or `DatasetDict` that `save_to_disk` has made. Raises InputError if it is damaged."""
    datasets = _library(str(path))
    try:
        return datasets.load_from_disk(str(path))
    except _DAMAGE as error:
        raise InputError(f"{path} is not a readable dataset ({one_line(error)}); copy or save it again") from error


def named_splits(spec: str) -> list[DatasetSplit]:
    """The dataset `hf:OWNER/NAME`, all splits of it, or the one of `hf:OWNER/NAME:SPLIT`; downloaded where it is not
    in the library's cache. Raises InputError if it cannot be had."""
    datasets = _library(spec)
    name, _, split = spec.removeprefix(PREFIX).partition(":")
    try:
        found = datasets.load_dataset(name, split=split or None)
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
    return _splits(found, f"{name}/{split}" if split else name, spec)


def _library(wanted_for: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{wanted_for} needs the library of Hugging Face datasets: pip install datasets") from error
    return datasets


def _splits(found: Any, name: str, where: str) -> list[DatasetSplit]:
    if isinstance(found, dict):
        return [DatasetSplit(table, f"{name}/{split}", f"{where}, split {split}") for split, table in found.items()]
    return [DatasetSplit(found, name, where)]
