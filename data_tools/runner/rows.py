"""Records with their place in a file, and the sources from which a stage reads them.

A source is cut into numbered parts; a part is the unit of work, of restart and of commit.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import parse_json_object, read_json_object

from ..settings import WorkShare

SETTINGS_NAME = "settings.json"
REPAIR = "remove the directory and run its stage again"
"""What to do about a damaged file of a stage's output."""


def read_stage_settings(directory: Path) -> dict[str, Any] | None:
    """Return the settings that a stage wrote into its output; None if there are none. Raises InputError if damaged."""
    path = directory / SETTINGS_NAME
    if not path.is_file():
        return None
    found = read_json_object(path, REPAIR)
    for name, kind in {"stage": str, "parts": int, "settings": dict, "history": dict}.items():
        if type(found.get(name)) is not kind:
            raise InputError(f"{path}: field {name!r} is missing or of another kind; {REPAIR}")
    if not all(isinstance(settings, dict) for settings in found["history"].values()):
        raise InputError(f"{path}: field 'history' holds something else than the settings of stages; {REPAIR}")
    return found


def read_counts(path: Path) -> dict[str, int]:
    """Return a stage's counts. Raises InputError if the file is missing or damaged."""
    found = read_json_object(path, REPAIR)
    if not all(type(count) is int for count in found.values()):
        raise InputError(f"{path} holds something else than whole numbers; {REPAIR}")
    return found


@dataclass(frozen=True)
class Row:
    """One record, and its place for messages: "pairs.jsonl, line 12"."""

    record: dict[str, Any]
    where: str


class Source(Protocol):
    """Numbered parts of records."""

    @property
    def rows_in_parts(self) -> list[int]:
        """Number of records in each part."""

    def identity(self) -> dict[str, Any]:
        """What the input is (names and sizes), to notice that it changed between two runs."""

    def history(self) -> dict[str, Any]:
        """The settings of the stages that made this input, by stage name."""

    def parts(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        """Yield the parts for whose numbers `wanted` is true, in order. It is called once per part, right before the
        part would be read."""


def open_parts(stage: str, path: Path, share: WorkShare) -> "PartsSource":
    """Return the input of a stage, in its own parts if it has any, else in parts of the given size. Prints which
    settings have no effect because the input has parts. Raises InputError if it has no records, or a damaged file."""
    source = PartsSource(path, rows_per_part=share.part_size, bytes_per_part=share.part_bytes)
    idle = [f"--{name.replace('_', '-')}" for name in _PART_SETTINGS if is_given(share, name)]
    if source.has_parts and idle and share.rank == 0:
        print(
            f"{stage}: {' and '.join(idle)} without effect: {path} has {len(source.rows_in_parts)} parts, which stay "
            "as they are; only the first stage, which reads documents or pairs, cuts parts",
            file=sys.stderr,
        )
    return source


_PART_SETTINGS = ("part_size", "part_bytes")


def is_given(share: WorkShare, name: str) -> bool:
    """Return whether a setting differs from its default."""
    return any(item.name == name and getattr(share, name) != item.default for item in fields(share))


@dataclass
class PartLimits:
    """Limits that decide when a part is full. The same records always give the same parts."""

    rows: int
    bytes: int | None
    _mattered: bool = False

    def is_full(self, rows: int, size: int, more: int) -> bool:
        """Return whether a record of `more` bytes does not fit into a part of `rows` records and `size` bytes."""
        too_large = rows > 0 and self.bytes is not None and size + more > self.bytes
        self._mattered |= too_large and rows < self.rows
        return rows >= self.rows or too_large

    def identity(self) -> dict[str, int]:
        """Return the limits that decided the parts, without a limit in bytes that closed none."""
        return {"rows_per_part": self.rows} | ({"bytes_per_part": self.bytes} if self._mattered and self.bytes else {})


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Lines of a JSONL file, from a byte offset on."""

    path: Path
    offset: int
    first_line: int  # 1-based
    lines: int  # physical lines, blank ones included
    rows: int


class PartsSource:
    """The part directory of an earlier stage, a directory of .jsonl files, or one hand-made .jsonl file.

    A directory's files are its parts; a single file is cut every `rows_per_part` records, and before a record that
    would make a part larger than `bytes_per_part`. Raises InputError if the path is missing, empty, or the output of an
    unfinished stage.
    """

    def __init__(self, path: str | Path, *, rows_per_part: int = 32, bytes_per_part: int | None = None):
        self.path = Path(path)
        if not self.path.exists():
            raise InputError(f"{self.path} does not exist; give a .jsonl file or the directory of an earlier stage")
        self._settings = read_stage_settings(self.path)
        files = sorted(self.path.glob("*.jsonl")) if self.path.is_dir() else [self.path]
        if self._settings is not None and len(files) != self._settings["parts"]:
            stage = self._settings["stage"]
            raise InputError(
                f"{self.path} holds {len(files)} of the {self._settings['parts']} parts of stage {stage!r}; "
                f"run `longpo data {stage}` again to finish it"
            )
        # An empty part of a stage stays a part, so that part numbers match along the pipeline.
        self.has_parts = self.path.is_dir()
        self._limits = PartLimits(rows_per_part, bytes_per_part)
        limits = None if self.has_parts else self._limits
        self._blocks = [block for file in files for block in _index(file, limits)]
        if sum(block.rows for block in self._blocks) == 0:
            raise InputError(f"{self.path} holds no records; give a .jsonl file or directory with at least one")

    @property
    def rows_in_parts(self) -> list[int]:
        return [block.rows for block in self._blocks]

    def identity(self) -> dict[str, Any]:
        sizes = {block.path.name: block.path.stat().st_size for block in self._blocks}
        return sizes if self.has_parts else sizes | self._limits.identity()

    def history(self) -> dict[str, Any]:
        if self._settings is None:
            return {}
        return self._settings["history"] | {self._settings["stage"]: self._settings["settings"]}

    def parts(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        for number, block in enumerate(self._blocks):
            if wanted(number):
                yield number, list(_read(block))

    def rows(self) -> Iterator[Row]:
        """Yield all records."""
        return (row for block in self._blocks for row in _read(block))


def _index(path: Path, limits: PartLimits | None) -> Iterator[_Block]:
    """Cut a file into blocks; without limits into one, which may be empty."""
    offset, first_line, lines, rows, position = 0, 1, 0, 0, 0
    with path.open("rb") as file:
        for line in file:
            filled = bool(line.strip())
            if limits is not None and filled and limits.is_full(rows, position - offset, len(line)):
                yield _Block(path=path, offset=offset, first_line=first_line, lines=lines, rows=rows)
                offset, first_line, lines, rows = position, first_line + lines, 0, 0
            position += len(line)
            lines += 1
            rows += filled
    if rows or limits is None:
        yield _Block(path=path, offset=offset, first_line=first_line, lines=lines, rows=rows)


def _read(block: _Block) -> Iterator[Row]:
    with block.path.open("rb") as file:
        file.seek(block.offset)
        for number in range(block.first_line, block.first_line + block.lines):
            line = file.readline()
            if line.strip():
                where = f"{block.path}, line {number}"
                yield Row(parse_json_object(line, where, "correct or remove the line"), where)
