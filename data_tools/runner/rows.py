"""Records with their place in a file, and where a stage takes them from.

A source is cut into numbered parts; a part is the unit of work, of restart and of commit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

from ..jsonl import parse_line

SETTINGS_NAME = "settings.json"
REPAIR = "remove the directory and run its stage again"
"""What to do about a damaged file of a stage's output."""


@dataclass(frozen=True)
class Row:
    """One record and where it stands, for messages: "pairs.jsonl, line 12"."""

    record: dict[str, Any]
    where: str


class Source(Protocol):
    """Numbered parts of records."""

    @property
    def rows_in_parts(self) -> list[int]:
        """How many records each part holds."""

    def identity(self) -> dict[str, Any]:
        """What the input is (names and sizes), to notice that it changed between two runs."""

    def history(self) -> dict[str, Any]:
        """The settings of the stages that made this input, by stage name."""

    def parts(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        """The parts for whose numbers `wanted` is true, in order. It is asked about each part once, right before
        the part would be read."""


@dataclass(frozen=True)
class _Block:
    """Lines of a JSONL file, from a byte offset on."""

    path: Path
    offset: int
    first_line: int  # 1-based
    lines: int  # physical lines, blank ones included
    rows: int


class PartsSource:
    """The part directory of an earlier stage, a directory of .jsonl files, or one .jsonl file that someone made.

    A directory's files are its parts; a single file is cut every `rows_per_part` records. Raises InputError if the
    path is missing, empty, or the output of a stage that has not finished.
    """

    def __init__(self, path: str | Path, *, rows_per_part: int = 32):
        self.path = Path(path)
        if not self.path.exists():
            raise InputError(f"{self.path} does not exist; give a .jsonl file or the directory of an earlier stage")
        self._settings = self._read_settings() if self.path.is_dir() else None
        files = sorted(self.path.glob("*.jsonl")) if self.path.is_dir() else [self.path]
        if self._settings is not None and len(files) != self._settings["parts"]:
            stage = self._settings["stage"]
            raise InputError(
                f"{self.path} holds {len(files)} of the {self._settings['parts']} parts of stage {stage!r}; "
                f"run `longpo data {stage}` again to finish it"
            )
        # An empty part of a stage stays a part, so that part numbers match along the pipeline.
        self._rows_per_part = None if self.path.is_dir() else rows_per_part
        self._blocks = [block for file in files for block in _index(file, self._rows_per_part)]
        if sum(block.rows for block in self._blocks) == 0:
            raise InputError(f"{self.path} holds no records; give a .jsonl file or directory with at least one")

    @property
    def rows_in_parts(self) -> list[int]:
        return [block.rows for block in self._blocks]

    def identity(self) -> dict[str, Any]:
        sizes = {block.path.name: block.path.stat().st_size for block in self._blocks}
        return sizes if self._rows_per_part is None else sizes | {"rows_per_part": self._rows_per_part}

    def history(self) -> dict[str, Any]:
        if self._settings is None:
            return {}
        return self._settings["history"] | {self._settings["stage"]: self._settings["settings"]}

    def parts(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        for number, block in enumerate(self._blocks):
            if wanted(number):
                yield number, list(_read(block))

    def rows(self) -> Iterator[Row]:
        """All records, one at a time."""
        return (row for block in self._blocks for row in _read(block))

    def _read_settings(self) -> dict[str, Any] | None:
        path = self.path / SETTINGS_NAME
        return read_json_object(path, REPAIR) if path.is_file() else None


def _index(path: Path, rows_per_block: int | None) -> Iterator[_Block]:
    """Cut a file into blocks of that many non-blank lines; None: one block, which may be empty."""
    offset, first_line, lines, rows, position = 0, 1, 0, 0, 0
    with path.open("rb") as file:
        for line in file:
            position += len(line)
            lines += 1
            rows += bool(line.strip())
            if rows == rows_per_block:
                yield _Block(path, offset, first_line, lines, rows)
                offset, first_line, lines, rows = position, first_line + lines, 0, 0
    if rows or rows_per_block is None:
        yield _Block(path, offset, first_line, lines, rows)


def _read(block: _Block) -> Iterator[Row]:
    with block.path.open("rb") as file:
        file.seek(block.offset)
        for number in range(block.first_line, block.first_line + block.lines):
            line = file.readline()
            if line.strip():
                where = f"{block.path}, line {number}"
                yield Row(parse_line(line, where), where)
