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
from typing import Any

from nemo_longpo.errors import InputError, one_line

DAMAGED = (
    *(pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, AssertionError, ImportError),
)
"""What unpickling raises for damaged bytes (found by changing bytes at random)."""

Name = tuple[str, str]
"""Module, and the name within it."""

_NEVER_WRITTEN = {"DUP", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
"""What `pickle.dump` and `torch.save` do not write, beside instructions whose argument is a line of text."""


def check_claims(content: bytes, where: str) -> None:
    """Raises InputError if a pickle claims more memory than its bytes fill, which Python reserves before it reads on.

    So it does for a pickle that ends early, or holds an instruction that is not written today.
    """
    at, end = 0, len(content)
    try:
        for opcode, argument, position in pickletools.genops(content):
            name, size, at = opcode.name, argument or 0, position or 0
            is_line = opcode.arg is not None and opcode.arg.n == pickletools.UP_TO_NEWLINE and name != "GLOBAL"
            if is_line or name in _NEVER_WRITTEN:
                raise ValueError(f"{name} is no instruction of today's pickles")
            if name == "LONG_BINPUT" and size > end:
                raise ValueError("a place in memory beyond the number of objects")
            if name == "FRAME" and size > end - at - 9:
                raise ValueError("a frame longer than the file")
    except ValueError as error:
        raise InputError(f"{where} is damaged (at byte {at} or after: {one_line(error)}); copy it again") from error


class _Inert:
    """Accepts whatever a pickle does with an object, and does nothing."""

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
