"""Dataclasses from foreign JSON: every field is there, none besides, each of its declared type."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from reprlib import repr as short_repr
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

Built = TypeVar("Built")
_LARGEST = 2**63 - 1
_KINDS = {int: "a whole number from 0", str: "text", dict: "an object", tuple: "a list"}


def build(kind: type[Built], content: Any, where: str, advice: str) -> Built:
    """Make a dataclass of `content`, as `parse_json` returns it.

    Fields may be dataclasses, tuples of them, and `X | None`.

    Whole numbers are those that count something: from 0, and of 64 bits. `where` names the file.

    Raises:
        InputError: "{where}: {field, by its path} is missing | unknown | should be …; {advice}".
    """
    return _Reader(where, advice).object(kind, content, "")


def read_versioned(path: Path, kind: type[Built], version: int, advice: str) -> Built:
    """Make a dataclass of a JSON file of ours, an object with a `version` beside the fields.

    Raises InputError if the file is not readable, of another version, or its fields are not those of `kind`.
    """
    content = read_json_object(path, advice)
    found = content.pop("version", None)
    if found != version:
        raise InputError(f"{path} is of version {short_repr(found)}, and only {version} is known here; {advice}")
    return build(kind, content, str(path), advice)


class _Reader:
    def __init__(self, where: str, advice: str):
        self.where = where
        self.advice = advice

    def object(self, kind: type[Built], content: Any, path: str) -> Built:
        if not isinstance(content, dict):
            self._refuse(path, f"should be an object, not {short_repr(content)}")
        expected = {item.name for item in fields(kind)}  # type: ignore[arg-type]
        for problem, names in (("is missing", expected - set(content)), ("is unknown", set(content) - expected)):
            for name in sorted(names):
                self._refuse(_join(path, name), problem)
        hints = get_type_hints(kind)
        return kind(**{name: self.value(hints[name], content[name], _join(path, name)) for name in content})

    def value(self, kind: Any, content: Any, path: str) -> Any:
        if get_origin(kind) is UnionType:  # X | None
            kind, _ = get_args(kind)
            return None if content is None else self.value(kind, content, path)
        if is_dataclass(kind):
            return self.object(kind, content, path)  # type: ignore[arg-type]
        plain = get_origin(kind) or kind
        if not isinstance(content, list if plain is tuple else plain) or isinstance(content, bool):
            self._refuse(path, f"should be {_KINDS[plain]}, not {short_repr(content)}")
        if plain is int and not 0 <= content <= _LARGEST:
            self._refuse(path, f"should be {_KINDS[int]}, below 2 to the 63rd, not {short_repr(content)}")
        if plain is tuple:
            return tuple(self.value(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(content))
        if plain is dict and get_args(kind)[1] is not Any:
            return {name: self.value(get_args(kind)[1], item, _join(path, name)) for name, item in content.items()}
        return content

    def _refuse(self, path: str, problem: str) -> None:
        raise InputError(
            f"{self.where}: field {path!r} {problem}; {self.advice}" if path else f"{self.where} {problem}"
        )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
