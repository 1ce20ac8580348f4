"""Read what NeMo would build of a checkpoint's `context/io.json`, without importing or building anything.

The file is JSON of fiddle (`fiddle.experimental.serialization`): objects with a type, items and metadata, references
among them, and names of Python objects, which loading imports and building calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

from .integrity import COPY_AGAIN


@dataclass(frozen=True)
class Name:
    """The name of a Python object; `symbol` may have dots."""

    module: str
    symbol: str

    def __str__(self) -> str:
        return f"{self.module}.{self.symbol}"


@dataclass(frozen=True)
class Recorded:
    """A call that NeMo would make. Values are plain, names, or calls themselves."""

    target: Name
    arguments: dict[str, Any]


_CALLS = {Name("fiddle._src.config", "Config"), Name("fiddle._src.partial", "Partial")}
_RECORD = Name("fiddle._src.config", "BuildableTraverserMetadata")
_MAPPING = Name("builtins", "dict")
STRUCTURE = {
    *_CALLS,
    _RECORD,
    Name("fiddle._src.config", "NoValue"),
    *(Name("builtins", kind) for kind in ("dict", "list", "tuple", "set", "frozenset")),
}
"""Types of objects that are read here. NeMo unpickles a file beside `io.json` for some objects of other types."""


def read_recorded(context: Path, subpath: str, check: Callable[[Name], None]) -> Any:
    """Return the value at `subpath` ("model.config").

    `check` is called with each name that loading the subpath imports, except those of STRUCTURE, and raises InputError
    for one that may not be there.

    Raises:
        InputError: there is no readable `io.json`, no such subpath in it (NeMo would build everything), or an object of
            a type other than STRUCTURE.
    """
    path = context / "io.json"
    reader = _Reader(path, read_json_object(path, COPY_AGAIN), check)
    try:
        return reader.read_subpath(f"<root>.{subpath}")
    except RecursionError:
        raise reader.damaged("its objects are nested too deeply, or contain themselves") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise reader.damaged(f"{type(error).__name__} {error}") from error


class _Reader:
    def __init__(self, path: Path, content: dict[str, Any], check: Callable[[Name], None]):
        self._path = path
        self._objects: dict[str, dict[str, Any]] = (
            content["objects"] if isinstance(content.get("objects"), dict) else {}
        )
        self._check = check
        self._known: dict[str, Any] = {}

    def damaged(self, reason: str) -> InputError:
        return InputError(f"{self._path} is damaged ({reason}); {COPY_AGAIN}")

    def read_subpath(self, subpath: str) -> Any:
        root = next((key for key, found in self._objects.items() if subpath in self._paths(found)), None)
        if root is None:
            raise InputError(
                f"{self._path} records no {subpath.removeprefix('<root>.')}, so this is not a NeMo 2 language model; "
                f"{COPY_AGAIN}"
            )
        for found in self._objects.values():
            # NeMo imports the type of what may be a part of the subpath, whether or not anything refers to it.
            if "paths" not in found or any(subpath in path for path in self._paths(found)):
                self._type(found)
        return self._read({"type": "ref", "key": root})

    def _paths(self, found: dict[str, Any]) -> list[str]:
        paths = found.get("paths", [])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise self.damaged("the paths of an object are not a list")
        return paths

    def _type(self, node: dict[str, Any]) -> Name:
        name = self._name(node["type"])
        if name not in STRUCTURE:
            self._check(name)
            raise InputError(
                f"{self._path} has a {name} in the place of a configuration, which may be a pickle; {COPY_AGAIN}"
            )
        return name

    def _name(self, node: Any) -> Name:
        if node["type"] != "pyref" or not isinstance(node["module"], str) or not isinstance(node["name"], str):
            raise self.damaged("an object has no type")
        return Name(node["module"], node["name"])

    def _read(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._read(value) for value in node]
        if not isinstance(node, dict):
            return node
        kind = node["type"]
        if kind == "leaf":
            return node["value"]
        if kind == "ref":
            if node["key"] not in self._known:
                self._known[node["key"]] = self._read(self._objects[node["key"]])
            return self._known[node["key"]]
        if kind == "pyref":
            name = self._name(node)
            if name not in STRUCTURE:
                self._check(name)
            return name
        return self._read_object(self._type(node), node)

    def _read_object(self, kind: Name, node: dict[str, Any]) -> Any:
        values = [self._read(value) for _, value in node["items"]]
        metadata = self._read(node["metadata"])
        if kind in _CALLS:
            target, names = metadata[:2]
            if not isinstance(target, Name):
                raise self.damaged("a call without a name")
            return Recorded(target, dict(zip(names, values, strict=True)))
        return dict(zip(metadata, values, strict=True)) if kind == _MAPPING else values
