"""Mutations of a file: fields are removed, renamed or change kind; bytes are flipped, removed, added or cut.

A mutation is drawn by Hypothesis as small numbers, so that a failing case shrinks to the fewest changes.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]

# Text that `json.dumps` cannot write: put in place of a string of that name.
_RAW = {"@deep@": "[" * 100_000, "@digits@": "9" * 5_000, "@huge@": "1" + "0" * 400, "@float@": "1e999"}
_WRONG: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7.5, -0.0, 2**31, 2**63, 2**64, 1e308, float("nan"), float("-inf"), *_RAW),
    *("", " ", "x", "²", "0", "-1", "\x1b[2J", "\ud800", "a\nb", "../x", "/x", "é" * 300, "true", "null"),
    *([], [None], [[]], ["x"], [1, "x"], [{}], {}, {"x": None}, {"": {}}, {"content": 3}, {"type": "x"}),
]


_INSERTED = (b"\x00", b"\xff", b"\n", b'"', b"{", b"]", b"9" * 30, "\ufeff".encode())


@st.composite
def mutated_value(draw: st.DrawFn, value: Any) -> Any:
    """`value` (what JSON can hold) after one to three changes."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        value = _change(draw, value)
    return value


@st.composite
def mutated_json(draw: st.DrawFn, value: Any) -> bytes:
    """A document with a changed value, now and then as bytes that were changed besides."""
    content = dump(draw(mutated_value(value)))
    return draw(mutated_bytes(content)) if draw(st.integers(0, 9)) == 9 else content


@st.composite
def mutated_lines(draw: st.DrawFn, records: list[Any]) -> bytes:
    """JSON lines, one of which has a changed value."""
    at = draw(st.integers(0, len(records) - 1))
    lines = [dump(record) for record in records]
    lines[at] = draw(mutated_json(records[at]))
    return b"\n".join(lines) + b"\n"


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(found)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "remove", "zero", "repeat", "set")))
        size = draw(st.sampled_from((1, 2, 4, 8, 64)))
        if kind == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and at < len(found):
            found[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del found[at:]
        elif kind == "insert":
            found[at:at] = draw(
                st.sampled_from((b"\x00", b"\xff", b"\n", b'"', b"{", b"]", b"9" * 30, "\ufeff".encode()))
            )
        elif kind == "remove":
            del found[at : at + size]
        elif kind == "zero":
            found[at : at + size] = bytes(len(found[at : at + size]))
        elif kind == "repeat":
            found[at:at] = found[at : at + size]
    return bytes(found)


def dump(value: Any) -> bytes:
    text = json.dumps(value)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def _change(draw: st.DrawFn, value: Any) -> Any:
    path = draw(st.sampled_from(list(_paths(value)) or [()]))
    if not path:
        return _wrong(draw)
    *way, last = path
    place = value
    for step in way:
        place = place[step]
    kind = draw(st.sampled_from(("replace", "drop", "retitle", "wrap", "swap", "double")))
    if kind == "drop":
        del place[last]
    elif kind == "retitle" and isinstance(place, dict):
        place[f"{last}x"] = place.pop(last)
    elif kind == "wrap":
        place[last] = [place[last]]
    elif kind == "swap":
        other = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        place[last], place[other] = place[other], place[last]
    elif kind == "double" and isinstance(place, list):
        place.insert(last, place[last])
    else:
        place[last] = _wrong(draw)
    return value


def _wrong(draw: st.DrawFn) -> Any:
    return copy.deepcopy(draw(st.sampled_from(_WRONG)))


def _paths(value: Any, way: Path = ()) -> Iterator[Path]:
    """Every place in a value; of a long list the first and last ones, so that one list does not take all draws."""
    yield way
    if isinstance(value, dict):
        for name in value:
            yield from _paths(value[name], (*way, name))
    elif isinstance(value, list):
        for at in dict.fromkeys([*range(min(3, len(value))), *range(max(0, len(value) - 2), len(value))]):
            yield from _paths(value[at], (*way, at))
