"""Rows of benchmark files: JSON lines, a JSON list, Parquet. A row that cannot be used is named by file and number."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from nemo_longpo import json_input, typed_fields
from nemo_longpo.data_tools.readers.files import JSON_SUFFIXES, open_lines, unreadable
from nemo_longpo.errors import InputError

Row = TypeVar("Row")
SUFFIXES = (".parquet", *JSON_SUFFIXES, ".json")
ADVICE = "fetch the file again, or correct it"


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("FILE: row N", the row) from a `.jsonl` (also `.gz`, `.zst`), `.json` or `.parquet` file.

    Raises InputError if the file cannot be read, or if a row is no object.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; docs/evaluation.md says where the file comes from")
    if path.name.endswith(JSON_SUFFIXES):
        with open_lines(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}: row {number}", json_input.parse_json_object(line, f"{path}: row {number}", ADVICE)
    elif path.suffix == ".json":
        content = json_input.parse_json(path.read_bytes(), str(path), ADVICE)
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise InputError(f"{path} should hold a list of JSON objects; {ADVICE}")
        for number, row in enumerate(content, 1):
            yield f"{path}: row {number}", row
    elif path.suffix == ".parquet":
        for number, row in enumerate(_parquet(path), 1):
            yield f"{path}: row {number}", row
    else:
        raise InputError(f"{path} should be a .jsonl, .json or .parquet file")


def split_file(directory: Path, split: str) -> Path:
    """Return the one file of a split in a directory of a data set. Raises InputError if there is none, or two."""
    found = [path for suffix in SUFFIXES if (path := directory / f"{split}{suffix}").exists()]
    if not found:
        raise InputError(
            f"{directory} has no {split}.parquet and no {split}.jsonl; docs/evaluation.md says where it comes from"
        )
    if len(found) > 1:
        raise InputError(f"{directory} has {' and '.join(path.name for path in found)}; remove all but one")
    return found[0]


def typed_rows(path: Path, kind: type[Row]) -> Iterator[tuple[str, Row]]:
    """Yield the rows as dataclasses; columns that `kind` has no field for are ignored.

    Raises InputError as `rows` does, or if a field is missing or of another type.
    """
    for where, row in rows(path):
        yield where, typed_fields.build(kind, row, where, ADVICE, exact=False)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(path, error) from error
