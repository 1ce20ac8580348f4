"""Tokenised datasets as parts of rows: from a directory, from files, or by name from the Hugging Face hub."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError, one_line

from ..corpus.huggingface import load_saved
from ..runner.rows import Row
from .document import OPTIONAL, REQUIRED
from .tables import JsonlTable, ParquetTable, SavedTable, Table, choose_columns

_FILES = (".parquet", ".jsonl", ".jsonl.gz")


class PublishedSource:
    """Rows with "doc_id", "part" (their part's number) and "columns"; a part holds at most `rows_per_part` of a table.

    Raises InputError for missing files, datasets that cannot be loaded, missing columns and an empty dataset.
    """

    def __init__(self, inputs: list[str], *, split: str, id_field: str, rows_per_part: int):
        self._tables = [table for text in inputs for table in _open(text, split, id_field)]
        self._id_field, self._rows_per_part = id_field, rows_per_part
        if not self.rows_in_parts:
            raise InputError(f"{', '.join(inputs)} holds no rows; give a dataset with at least one")

    @property
    def rows_in_parts(self) -> list[int]:
        size = self._rows_per_part
        return [min(size, table.rows - start) for table in self._tables for start in range(0, table.rows, size)]

    def identity(self) -> dict[str, Any]:
        return {table.name: table.size() for table in self._tables} | {"rows_per_part": self._rows_per_part}

    def history(self) -> dict[str, Any]:
        return {}

    def parts(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        part = 0
        for table in self._tables:
            for block, load in enumerate(table.blocks(self._rows_per_part)):
                if wanted(part):
                    first = block * self._rows_per_part + 1
                    yield part, [self._row(table, first + index, row, part) for index, row in enumerate(load())]
                part += 1

    def _row(self, table: Table, number: int, columns: dict[str, Any], part: int) -> Row:
        where = f"{table.name}, {table.unit} {number}"
        choose_columns(list(columns), (), REQUIRED, where)
        doc_id = columns.get(self._id_field)
        if doc_id is not None and not isinstance(doc_id, str | int):
            raise InputError(
                f"{where}: column {self._id_field!r} must be text or a number, not {type(doc_id).__name__}"
            )
        name = f"{table.name}:{number}" if doc_id is None else str(doc_id)
        return Row({"doc_id": name, "part": part, "columns": columns}, where)


def _open(text: str, split: str, id_field: str) -> list[Table]:
    path, wanted = Path(text), (id_field, *REQUIRED, *OPTIONAL)
    if path.is_file():
        return [_open_file(path, path.name, wanted)]
    if not path.is_dir():
        return [_open_dataset(text, split, wanted)]
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return [_open_dataset(text, split, wanted)]
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(_FILES))
    if not files:
        raise InputError(f"{path} is no saved dataset and holds no {', '.join(_FILES)} file; give one that is or does")
    return [_open_file(file, file.relative_to(path).as_posix(), wanted) for file in files]


def _open_file(path: Path, name: str, wanted: tuple[str, ...]) -> Table:
    if path.name.endswith(".parquet"):
        return ParquetTable.open(path, name, wanted, REQUIRED)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return JsonlTable.open(path, name)
    raise InputError(f"{path} is none of {', '.join(_FILES)}; give such a file, or a dataset saved to disk")


def _open_dataset(text: str, split: str, wanted: tuple[str, ...]) -> Table:
    """A dataset saved to disk, or else one of that name on the hub (`hf:owner/name` or `owner/name`)."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"reading {text} needs the package `datasets`; install it: pip install datasets") from error

    saved = Path(text).is_dir()
    name = text.removeprefix("hf:")
    found = load_saved(Path(text)) if saved else _load_named(text)
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"{text} has no split {split!r}; choose one of {', '.join(found)} with --split")
        found = found[split]
    name = Path(text).name if saved else name
    return SavedTable(name, found, choose_columns(found.column_names, wanted, REQUIRED, name))


def _load_named(text: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(text.removeprefix("hf:"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{text} cannot be loaded as a dataset ({one_line(error)}); check the name, or download it and give its "
            "directory"
        ) from error
