"""A pickle is held to its list by module and name together, and to its own length, before Python reads it."""

import collections
import pickle

import pytest

from nemo_longpo.checkpoints.pickled import check_claims, check_names
from nemo_longpo.errors import InputError

ALLOWED = {("collections", "OrderedDict"), ("builtins", "set"), ("os", "eval")}


def length(size: int, width: int) -> bytes:
    return size.to_bytes(width, "little")


@pytest.mark.parametrize("protocol", range(3, 6))
def test_listed_names_pass(protocol):
    value = {"a": [1, -1, 2.5, "é" * 300, b"x" * 300, 10**400, None, True], "b": (set(), collections.OrderedDict(a=1))}
    check_names(pickle.dumps(value, protocol), ALLOWED, "it", "do")


@pytest.mark.parametrize("name", ["collections\nCounter", "builtins\neval", "os\nOrderedDict"])
def test_a_name_is_listed_with_its_module(name):
    for content in (
        b"c" + name.encode() + b"\n.",
        b"\x80\x04" + b"".join(b"\x8c" + length(len(part), 1) + part.encode() for part in name.split("\n")) + b"\x93.",
    ):
        with pytest.raises(InputError, match=f"it asks for {name.replace(chr(10), '.')}, .* nothing of it was run; do"):
            check_names(content, ALLOWED, "it", "do")


def test_only_files_of_torch_refer_to_storages():
    content = b"\x80\x02X" + length(1, 4) + b"0Q."
    check_names(content, ALLOWED, "it", "do", storages=True)
    with pytest.raises(InputError, match="it refers to something outside"):
        check_names(content, ALLOWED, "it", "do")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"X" + length(4, 4) + b"abc.", "pickle exhausted before seeing STOP"),
        (b"X" + length(5, 4) + b"abc.", "byte 0 or after: expected 5 bytes in a unicodestring4, but only 4 remain"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\0.", "byte 0 or after: expected"),
        (b"\x95" + length(2, 8) + b".", "byte 0 or after: a frame longer than the file"),
        (b"Nr" + length(8, 4) + b".", "byte 1 or after: a place in memory beyond"),
        (b"cos\nsystem", "byte 0 or after: no newline found"),
        (b"N", "byte 0 or after: pickle exhausted"),
        (b"", "byte 0 or after: pickle exhausted"),
        (b"ios\nsystem\n.", "byte 0 or after: INST is no instruction"),
        (b"N2.", "byte 1 or after: DUP is no instruction"),
        (b"\x82\x01.", "byte 0 or after: EXT1 is no instruction"),
        (b"I1\n.", "byte 0 or after: INT is no instruction"),
    ],
)
def test_unsafe_pickles_are_refused(content, reason):
    for check in (lambda: check_claims(content, "it"), lambda: check_names(content, ALLOWED, "it", "do")):
        with pytest.raises(InputError, match=reason):
            check()


@pytest.mark.parametrize("content", [b"X" + length(3, 4) + b"abc.", b"\x95" + length(2, 8) + b"N.", b"Nr\0\0\0\0."])
def test_sizes_that_fit_pass(content):
    check_claims(content, "it")
    check_names(content, (), "it", "do")


def test_bytes_after_the_end_are_not_read():
    check_claims(b"N.\xff\xff", "it")
