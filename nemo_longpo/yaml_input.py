"""YAML that came from somewhere else: every way in which it can be unreadable becomes one sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError, one_line

_SCALAR_ERRORS = (ValueError, LookupError, AttributeError, ArithmeticError, TypeError, RecursionError)
"""What PyYAML raises, beside its own errors, over a date that is none, a number of thousands of digits or an empty one,
and nesting deeper than it reads."""
_MOST_VALUES = 1_000_000  # with every alias written out


def read_yaml_mapping(path: Path, advice: str) -> dict[Any, Any]:
    """The mapping in a YAML file. Nothing in it runs code.

    Raises:
        InputError: "{path} …; {advice}", if it is not there, not readable or no mapping, holds half of a character, or
            has aliases that lead back to themselves or stand for more than a million values.
    """
    import yaml

    try:
        value = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist; {advice}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {advice}") from error
    except (yaml.YAMLError, *_SCALAR_ERRORS) as error:
        raise InputError(f"{path} is not readable YAML: {one_line(error)}; {advice}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a mapping of names to values, not a {type(value).__name__}; {advice}")
    problem = _Aliases().problem(value)
    if problem:
        raise InputError(f"{path} {problem}; {advice}")
    return value


class _Aliases:
    """Walks a value once, however often aliases repeat its parts."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def problem(self, value: Any) -> str | None:
        try:
            size = self._size(value)
        except (RecursionError, UnicodeEncodeError) as error:
            return "holds half of a character" if isinstance(error, UnicodeEncodeError) else "has a value within itself"
        return None if size <= _MOST_VALUES else f"stands for {size:.2g} values once its aliases are written out"

    def _size(self, value: Any) -> int:
        if isinstance(value, str):
            value.encode("utf-8")
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if id(value) in self._open:
            raise RecursionError
        if id(value) not in self._sizes:
            self._open.add(id(value))
            self._sizes[id(value)] = 1 + sum(map(self._size, _parts(value)))
            self._open.discard(id(value))
        return self._sizes[id(value)]


def _parts(value: Any) -> Iterator[Any]:
    yield from value
    if isinstance(value, dict):
        yield from value.values()
