"""Dataclasses from foreign JSON: every field has its declared type, and a wrong one becomes one sentence."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from reprlib import repr as short_repr
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

Built = TypeVar("Built")
LARGEST = 2**31 - 1
"""Sizes and positions are 32-bit numbers in what reads them later."""


def is_whole(value: Any, low: int = 1, high: int = LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True)
class Kind:
    """What a value must be, as the second argument of `Annotated`; `words` completes "should be …"."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e300


Size = Annotated[int, Kind(f"a whole number from 1 to {LARGEST}", is_whole)]
Count = Annotated[int, Kind(f"a whole number from 0 to {LARGEST}", lambda value: is_whole(value, 0))]
Number = Annotated[float, Kind("a number from 0 to 1e300", _is_number)]
Stated = Annotated[Built | None, "never null"]
"""A field that may be absent, and is None then, but that the file may not set to null."""
Names = Annotated[
    list[str],
    Kind("a list of strings", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)),
]
_KINDS = {
    int: Kind("a whole number from 0, below 2 to the 63rd", lambda value: is_whole(value, 0, 2**63 - 1)),
    str: Kind("text", lambda value: isinstance(value, str)),
    bool: Kind("true or false", lambda value: isinstance(value, bool)),
    dict: Kind("an object", lambda value: isinstance(value, dict)),
    tuple: Kind("a list", lambda value: isinstance(value, list)),
}


def build(
    kind: type[Built],
    content: Any,
    where: str,
    advice: str,
    *,
    exact: bool = True,
    names: Mapping[str, str] | None = None,
) -> Built:
    """Make a dataclass of `content`, as `parse_json` returns it.

    Fields may be dataclasses, tuples of them, dicts, `X | None`, and the annotated types above. Whole numbers count
    something: from 0, of 64 bits. `where` names the file in errors. An `exact` object has every field and no others;
    else fields may be absent, if they have a default, and others are ignored. `names` are the file's own for fields.

    Raises:
        InputError: "{where}: {field, by its path} is missing | unknown | should be …; {advice}".
    """
    return _Reader(where, advice, exact, names or {}).object(kind, content, "")


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
    def __init__(self, where: str, advice: str, exact: bool, names: Mapping[str, str]):
        self.where, self.advice, self.exact, self.names = where, advice, exact, names

    def object(self, kind: type[Built], content: Any, path: str) -> Built:
        if not isinstance(content, dict):
            self._refuse(path, f"should be an object, not {short_repr(content)}")
        known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
        if self.exact:
            for name in sorted(set(known) ^ set(content)):
                self._refuse(self._join(path, name), "is missing" if name in known else "is unknown")
        for item in fields(kind):  # type: ignore[arg-type]
            if item.name not in content and item.default is MISSING and item.default_factory is MISSING:
                self._refuse(self._join(path, item.name), "is missing")
        hints = get_type_hints(kind, include_extras=True)
        return kind(
            **{
                name: self.value(hints[name], content[name], self._join(path, name))
                for name in known
                if name in content
            }
        )

    def value(self, kind: Any, content: Any, path: str) -> Any:
        if get_args(kind)[1:] == ("never null",):
            kind = get_args(get_args(kind)[0])[0]
        if type(None) in get_args(kind):  # X | None
            return None if content is None else self.value(get_args(kind)[0], content, path)
        if is_dataclass(kind):
            return self.object(kind, content, path)  # type: ignore[arg-type]
        plain = get_origin(kind) or kind
        rule = get_args(kind)[1] if plain is Annotated else _KINDS[plain]
        if not rule.fits(content):
            self._refuse(path, f"should be {rule.words}, not {short_repr(content)}")
        if plain is tuple:
            return tuple(self.value(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(content))
        if plain is dict and get_args(kind)[1] is not Any:
            return {name: self.value(get_args(kind)[1], item, f"{path}.{name}") for name, item in content.items()}
        return content

    def _refuse(self, path: str, problem: str) -> None:
        raise InputError(
            f"{self.where}: field {path!r} {problem}; {self.advice}" if path else f"{self.where} {problem}"
        )

    def _join(self, path: str, name: str) -> str:
        return f"{path}.{name}" if path else self.names.get(name, name)
