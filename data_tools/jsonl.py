"""JSON objects from files and lines, with errors that name the place, and what differs between two of them."""

import json
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises InputError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); correct or remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object")
    return content


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """One JSONL line as an object. Raises InputError naming the place."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte {error.start} of the line); convert the file to UTF-8") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error}); correct or remove the line") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: must be a JSON object, not {type(record).__name__}")
    return record


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Readable differences of two JSON values: "settings.seed was 0, now 1"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        absent = "absent"
        return [
            change
            for key in keys
            for change in differences(old.get(key, absent), new.get(key, absent), f"{name}.{key}" if name else key)
        ]
    # Settings compare as they are stored: a tuple comes back as a list.
    return [] if json.dumps(old) == json.dumps(new) else [f"{name} was {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
