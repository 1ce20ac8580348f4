"""Which documents were taken and which were refused: noted per part, put together when all parts are there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_longpo.atomic import write_file
from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

from ..runner.rows import REPAIR

REFUSED_NAME = "refused.json"


@dataclass(frozen=True)
class Refusal:
    doc_id: str
    where: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Ledger:
    """Keeps notes in hidden files of the stage's output until `close`. A part that is made again is noted again."""

    directory: Path

    def note(self, part: int, taken: list[tuple[str, str]], refused: list[Refusal]) -> None:
        """Note a part before it is committed, so that no finished part lacks its note. `taken` holds (document,
        place)."""
        content = {"taken": taken, "refused": [asdict(refusal) for refusal in refused]}
        write_file(self._note(part), json.dumps(content, ensure_ascii=False) + "\n")

    def close(self, parts: int) -> None:
        """Write refused.json. Raises InputError if two documents have one name, or none is left."""
        notes = [self._note(part) for part in range(parts)]
        if (self.directory / REFUSED_NAME).exists() or not all(note.is_file() for note in notes):
            return
        places: dict[str, str] = {}
        refused = []
        for note in notes:
            content = read_json_object(note, REPAIR)
            refused += content["refused"]
            for doc_id, where in content["taken"]:
                if doc_id in places:
                    raise InputError(
                        f"{where}: the name {doc_id!r} was already used by {places[doc_id]}; make the ids of the "
                        "dataset different, or name another column with --id-field"
                    )
                places[doc_id] = where
        write_file(self.directory / REFUSED_NAME, json.dumps(refused, indent=2, ensure_ascii=False) + "\n")
        if not places:
            raise InputError(
                f"none of the {len(refused)} documents can be used; the first one ({refused[0]['where']}): "
                f"{refused[0]['detail']}; the others are listed in {self.directory / REFUSED_NAME}"
            )
        for note in notes:
            note.unlink(missing_ok=True)

    def _note(self, part: int) -> Path:
        return self.directory / f".note-{part:05d}.json"
