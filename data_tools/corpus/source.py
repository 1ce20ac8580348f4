"""Documents from plain text, JSONL and Parquet files."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from ..jsonl import parse_line
from ..runner.rows import Row

_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")


class CorpusSource:
    """Files and directories as parts of `rows_per_part` documents: rows with "doc_id" and "document".

    A plain text file is one document, named by its path below the directory given. JSONL and Parquet rows have a
    "text" and may have an "id"; without one they are named by file and row. Raises InputError for missing files,
    text that is not UTF-8, rows without text, doubled names and an empty corpus.
    """

    def __init__(self, paths: list[str], *, rows_per_part: int = 32):
        self.rows_per_part = rows_per_part
        self._files = [found for path in paths for found in _find(Path(path))]
        self._count = sum(_count(file) for file, _ in self._files)
        if self._count == 0:
            raise InputError(f"the corpus {', '.join(paths)} holds no documents; give files with text")

    @property
    def rows_in_parts(self) -> list[int]:
        whole, rest = divmod(self._count, self.rows_per_part)
        return [self.rows_per_part] * whole + [rest] * bool(rest)

    def identity(self) -> dict[str, Any]:
        return {name: file.stat().st_size for file, name in self._files} | {"rows_per_part": self.rows_per_part}

    def history(self) -> dict[str, Any]:
        return {}

    def parts(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        rows = self._rows()
        for number in range(len(self.rows_in_parts)):
            part = list(islice(rows, self.rows_per_part))
            if wanted(number):
                yield number, part

    def _rows(self) -> Iterator[Row]:
        seen: dict[str, str] = {}
        for file, name in self._files:
            for row in _read(file, name):
                doc_id = row.record["doc_id"]
                if doc_id in seen:
                    raise InputError(f"{row.where}: document id {doc_id!r} was already used by {seen[doc_id]}")
                seen[doc_id] = row.where
                yield row


def _find(path: Path) -> list[tuple[Path, str]]:
    """(file, name) pairs: a file itself, or every text file below a directory, in a fixed order."""
    if path.is_file():
        return [(path, path.name)]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give text, JSONL or Parquet files, or directories of them")
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in _SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no {', '.join(_SUFFIXES)} file; give a directory of documents")
    return [(file, file.relative_to(path).as_posix()) for file in files]


def _count(file: Path) -> int:
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            return sum(bool(line.strip()) for line in lines)
    return _open_parquet(file).metadata.num_rows if file.suffix == ".parquet" else 1


def _read(file: Path, name: str) -> Iterator[Row]:
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{file}, line {number}"
                    yield _row(parse_line(line, where), f"{name}:{number}", where)
    elif file.suffix == ".parquet":
        yield from _read_parquet(file, name)
    else:
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 (at byte {error.start}); convert it to UTF-8") from error
        yield _row({"text": text}, name, str(file))


def _read_parquet(file: Path, name: str) -> Iterator[Row]:
    parquet = _open_parquet(file)
    columns = [column for column in ("id", "text") if column in parquet.schema_arrow.names]
    if "text" not in columns:
        raise InputError(f"{file} has no column 'text' (it has {', '.join(parquet.schema_arrow.names)}); rename one")
    number = 0
    for batch in parquet.iter_batches(batch_size=16, columns=columns):
        for record in batch.to_pylist():
            number += 1
            yield _row(record, f"{name}:{number}", f"{file}, row {number}")


def _open_parquet(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} is not a readable Parquet file ({error})") from error


def _row(record: dict[str, Any], default_id: str, where: str) -> Row:
    text, doc_id = record.get("text"), record.get("id")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: field 'text' must be non-empty text; correct or remove the document")
    if doc_id is not None and not isinstance(doc_id, str | int):
        raise InputError(f"{where}: field 'id' must be text or a number, not {type(doc_id).__name__}")
    return Row({"doc_id": default_id if doc_id is None else str(doc_id), "document": text}, where)
