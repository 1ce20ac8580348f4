"""JSON objects from lines, with errors that name the place, and what differs between two JSON values."""

import json
from typing import Any

from nemo_longpo.json_input import parse_json_object


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """Parse one JSONL line. Raises InputError if it is no JSON object."""
    return parse_json_object(line, where, "correct or remove the line")


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
