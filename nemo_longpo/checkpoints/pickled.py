"""Pickles that came from somewhere else: they may claim no more memory than their bytes can fill, and ask for no name
that is not on a list.

`check_names` runs a pickle with an inert object in the place of everything that it asks for. A real loader then sees
the same names, because names follow from the bytes alone: what an inert object cannot give (a text that would become a
name, something else to call) is refused.
"""

import io
import pickle
import pickletools
from collections.abc import Collection
from typing import Any, NoReturn

from nemo_longpo.errors import InputError

DAMAGED = (
    *(pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, AssertionError, ImportError),
)
"""What unpickling raises over bytes that it cannot make sense of (found by changing bytes at random)."""

Name = tuple[str, str]
"""Module, and the name within it."""

_COUNTS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""How pickletools marks an argument with a count in front → bytes of the count."""

_NEVER_WRITTEN = {"INST", "DUP", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
"""Beside instructions whose argument is a line of text: what `pickle.dump` and `torch.save` do not write."""


def _instructions() -> tuple[dict[int, int], dict[int, int]]:
    fixed, counted = {}, {}
    for opcode in pickletools.opcodes:
        code, size = ord(opcode.code), opcode.arg.n if opcode.arg else 0
        if opcode.name in _NEVER_WRITTEN:
            continue
        if size >= 0:
            fixed[code] = 1 + size
        elif size in _COUNTS:
            counted[code] = _COUNTS[size]
    return fixed, counted


_FIXED, _COUNTED = _instructions()
_STOP, _GLOBAL, _FRAME, _LONG_BINPUT = pickle.STOP[0], pickle.GLOBAL[0], pickle.FRAME[0], pickle.LONG_BINPUT[0]


def check_claims(content: bytes, where: str) -> None:
    """Python reserves what a pickle claims before it reads on. Raises InputError if that is more than what follows."""

    def refuse(reason: str) -> NoReturn:
        raise InputError(f"{where} is damaged (byte {at}: {reason}); copy it again")

    at, end = 0, len(content)
    while at < end:
        code = content[at]
        step = _FIXED.get(code)
        if step is not None:
            if code == _STOP:
                return
            if code == _LONG_BINPUT and int.from_bytes(content[at + 1 : at + 5], "little") > end:
                refuse("a place in memory beyond the number of objects")
            if code == _FRAME and int.from_bytes(content[at + 1 : at + 9], "little") > end - at - 9:
                refuse("a frame longer than the file")
        elif code in _COUNTED:
            start = at + 1 + _COUNTED[code]
            size = int.from_bytes(content[at + 1 : start], "little")
            if size > end - start:
                refuse("a value longer than the file")
            step = start - at + size
        elif code == _GLOBAL:
            second = content.find(b"\n", content.find(b"\n", at) + 1)
            if second < 0:
                refuse("a name without an end")
            step = second + 1 - at
        else:
            refuse(f"{code:#04x} is no instruction of a pickle")
        at += step
    refuse("it ends early")


class _Inert:
    """Takes whatever a pickle does with an object, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _NotListed(Exception):
    """Its argument is the name that a pickle asked for."""


class _NameReader(pickle.Unpickler):
    def __init__(self, content: bytes, allowed: Collection[Name], storages: bool):
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._allowed, self._storages = allowed, storages

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if (module, name) not in self._allowed:
            raise _NotListed(f"{module}.{name}")
        return _Inert

    def persistent_load(self, pid: Any) -> _Inert:
        if not self._storages:
            raise pickle.UnpicklingError("it refers to something outside")
        return _Inert()


def check_names(content: bytes, allowed: Collection[Name], where: str, advice: str, storages: bool = False) -> None:
    """Raises InputError if the pickle asks for anything but `allowed`; nothing that it asks for is imported or called.

    `advice` ends the sentence. `storages`: it may refer to the tensors beside it, as within a file of `torch.save`.
    """
    check_claims(content, where)
    try:
        _NameReader(content, allowed, storages).load()
    except _NotListed as error:
        raise InputError(
            f"{where} asks for {error}, which a checkpoint does not need; nothing of it was run; {advice}"
        ) from None
    except DAMAGED as error:
        raise InputError(f"{where} is damaged ({error}); copy it again") from error
