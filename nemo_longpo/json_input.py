"""JSON that came from somewhere else: every way in which it can be unreadable becomes one sentence."""

import json
import re
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str, where: str, advice: str) -> Any:
    """The value that `content` spells; bytes are UTF-8, with or without a byte order mark.

    Raises:
        InputError: "{where} is not readable JSON: {reason}; {advice}", for wrong bytes, wrong syntax, nesting deeper
            than Python reads, numbers of thousands of digits, and text that holds half of a character (a surrogate
            without its other half, which no file and no tokenizer takes).
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text)
        if _HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    except UnicodeEncodeError as error:
        reason = f"it escapes half of a character (\\u{ord(error.object[error.start]):04x})"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # json.JSONDecodeError, or a number with more digits than Python converts
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "a number has too many digits"
    raise InputError(f"{where} is not readable JSON: {reason}; {advice}")


def parse_json_object(content: bytes | str, where: str, advice: str) -> dict[str, Any]:
    """Like `parse_json`, for what must be an object. Raises InputError if it is something else, or no JSON."""
    value = parse_json(content, where, advice)
    if not isinstance(value, dict):
        raise InputError(f"{where} should hold a JSON object, not a {type(value).__name__}; {advice}")
    return value


def read_json_object(path: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError if there is no such file, or it is not readable, or no object."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist; {advice}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {advice}") from error
    return parse_json_object(content, str(path), advice)
