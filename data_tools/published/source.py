"""Published datasets as parts of rows, and the ledger of accepted and refused documents.

Rows come from files, from directories, or by name from the Hugging Face hub. Every part adds to the ledger; it is put
together when no part is missing.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_longpo import atomic, json_input
from nemo_longpo.errors import InputError

from ..readers.files import JSON_SUFFIXES
from ..readers.find import PREFIX, Finder, name_and_split
from ..readers.records import Columns, DataFile, Piece, Record, read_parts
from ..runner import REPAIR, Row
from ..settings import DEFAULT_SPLIT
from .document import OPTIONAL, REQUIRED

_ADVICE = f"a tokenised LongPO dataset has {', '.join(REQUIRED)}"


class PublishedSource:
    """Rows with "doc_id", "part" (their part's number) and "columns"; a part holds at most `rows_per_part` of a table.

    `split` is the one to take of datasets with several; None takes the one in a dataset's name, else the default one.
    Raises InputError if files or columns are missing, a dataset cannot be loaded or is given two different splits, or
    the input has no rows.
    """

    def __init__(self, inputs: list[str], *, split: str | None, id_field: str, rows_per_part: int):
        for text in inputs:
            named = name_and_split(text)[1] if text.startswith(PREFIX) else None
            if split and named and split != named:
                raise InputError(f"{text} names another split than --split {split}; leave one of the two out")
        finder = Finder(split=split or DEFAULT_SPLIT)
        self._id_field, self._rows_per_part = id_field, rows_per_part
        # Rows are long: some millions of ids each.
        self._columns = Columns(REQUIRED, (id_field, *OPTIONAL), _ADVICE, batch=4)
        self._files: list[DataFile] = []
        for text in inputs:
            self._files += sorted(finder.find(text), key=lambda file: PurePosixPath(file.name))
        self._parts = [piece for number, file in enumerate(self._files) for piece in self._pieces(number, file)]
        if not self._parts:
            raise InputError(f"{', '.join(inputs)} holds no rows; give a dataset with at least one")

    def _pieces(self, number: int, file: DataFile) -> list[Piece]:
        pieces: list[Piece] = []
        with closing(file.open(self._columns)) as reader:
            for row, mark in enumerate(reader.marks()):
                if row % self._rows_per_part == 0:
                    pieces.append(Piece(number, mark))
                pieces[-1].rows += 1
        return pieces

    @property
    def rows_in_parts(self) -> list[int]:
        return [piece.rows for piece in self._parts]

    def identity(self) -> dict[str, Any]:
        return {file.name: file.disk_size for file in self._files} | {"rows_per_part": self._rows_per_part}

    def history(self) -> dict[str, Any]:
        return {}

    def parts(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        first_parts = {piece.file: part for part, piece in reversed(list(enumerate(self._parts)))}
        for part, records in read_parts(self._files, self._columns, [[piece] for piece in self._parts], wanted):
            file = self._parts[part].file
            first = (part - first_parts[file]) * self._rows_per_part + 1
            yield part, [self._row(record, file, first + index, part) for index, record in enumerate(records)]

    def _row(self, record: Record, file: int, number: int, part: int) -> Row:
        """`number` counts the records of the file, without blank lines."""
        name = self._files[file].name
        where = f"{name}, {'record' if name.lower().endswith(JSON_SUFFIXES) else 'row'} {number}"
        self._columns.of(list(record.content), where)
        doc_id = record.content.get(self._id_field)
        if doc_id is not None and not isinstance(doc_id, str | int):
            raise InputError(
                f"{where}: column {self._id_field!r} must be text or a number, not {type(doc_id).__name__}"
            )
        doc_id = f"{name}:{number}" if doc_id is None else str(doc_id)
        return Row({"doc_id": doc_id, "part": part, "columns": record.content}, where)


REFUSED_NAME = "refused.json"


@dataclass(frozen=True)
class Refusal:
    doc_id: str
    where: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Ledger:
    """Keeps notes in hidden files of the stage's output until `close`. A part that is made again replaces its note."""

    directory: Path

    def note(self, part: int, taken: list[tuple[str, str]], refused: list[Refusal]) -> None:
        """Note a part before it is committed, so that no finished part lacks its note. `taken` holds (document,
        place)."""
        content = {"taken": taken, "refused": [asdict(refusal) for refusal in refused]}
        atomic.write_file(self._note(part), json.dumps(content, ensure_ascii=False) + "\n")

    def close(self, parts: int) -> None:
        """Write refused.json. Raises InputError if two documents have the same name, or none is left."""
        notes = [self._note(part) for part in range(parts)]
        if (self.directory / REFUSED_NAME).exists() or not all(note.is_file() for note in notes):
            return
        places: dict[str, str] = {}
        refused = []
        for note in notes:
            content = json_input.read_json_object(note, REPAIR)
            refused += content["refused"]
            for doc_id, where in content["taken"]:
                if doc_id in places:
                    raise InputError(
                        f"{where}: the name {doc_id!r} was already used by {places[doc_id]}; make the ids of the "
                        "dataset different, or name another column with --id-field"
                    )
                places[doc_id] = where
        atomic.write_file(self.directory / REFUSED_NAME, json.dumps(refused, indent=2, ensure_ascii=False) + "\n")
        if not places:
            raise InputError(
                f"none of the {len(refused)} documents can be used; the first one ({refused[0]['where']}): "
                f"{refused[0]['detail']}; the others are listed in {self.directory / REFUSED_NAME}"
            )
        for note in notes:
            note.unlink(missing_ok=True)

    def _note(self, part: int) -> Path:
        return self.directory / f".note-{part:05d}.json"
