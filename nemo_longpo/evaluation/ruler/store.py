"""Made questions on the disk: JSON lines, and a manifest of all that they follow from."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_longpo import atomic, json_input, typed_fields
from nemo_longpo.errors import InputError

from ..questions import Question

GENERATOR = 1
"""Goes up with every change that makes other questions of the same settings."""
_QUESTIONS, _MANIFEST = "questions.jsonl", "manifest.json"


def kept(directory: Path, settings: dict[str, Any], make: Callable[[], list[Question]]) -> list[Question]:
    """The questions of these settings: read, if an earlier run made them, else made and written.

    They are in a directory of `directory` whose name says their length and a hash of the settings, so that another
    source, tokenizer or seed makes new ones beside them. Raises InputError if they were changed since, or cannot be
    written.
    """
    settings = {"generator": GENERATOR} | settings
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    place = directory / f"{settings['length']}-{name}"
    if (place / _MANIFEST).exists():
        return _read(place, settings)
    questions = make()
    content = "".join(f"{json.dumps(asdict(question), ensure_ascii=False)}\n" for question in questions).encode()
    manifest = settings | {"sha256": hashlib.sha256(content).hexdigest()}
    with atomic.new_directory(place, size=len(content)) as new:
        (new / _QUESTIONS).write_bytes(content)
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return questions


def _read(place: Path, settings: dict[str, Any]) -> list[Question]:
    advice = f"remove {place}, and the questions are made again"
    manifest = json_input.read_json_object(place / _MANIFEST, advice)
    path = place / _QUESTIONS
    content = path.read_bytes() if path.exists() else b""
    if manifest != settings | {"sha256": hashlib.sha256(content).hexdigest()}:
        raise InputError(f"{place} does not hold what its manifest says; {advice}")
    return [
        typed_fields.build(Question, json_input.parse_json(line, str(path), advice), str(path), advice)
        for line in content.splitlines()
    ]
