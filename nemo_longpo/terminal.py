"""What people read and type: text that a terminal must not obey, notes on standard error, and numbers.

Text from elsewhere: document ids, values of a configuration, a server's message, file names.
"""

import argparse
import math
import os
import re
import select
import sys
from typing import TextIO

READER_LEFT = 141
"""The exit status of a command whose output nobody reads any more, as of one that SIGPIPE ends (128 + 13)."""

# Control characters but the tab; line and paragraph separators, at which some terminals break lines; characters that
# turn the direction of writing around; characters that cannot be seen; halves of characters, which stand for the bytes
# of file names that are not UTF-8.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_PASSWORD = re.compile(r"(?<=://)[^\s/@]+@")


def printable(text: object) -> str:
    """One line that a terminal shows and does not obey.

    Characters that would move, colour or hide text become escapes such as `\\x1b`. A user name and password in an
    address become `***`.
    """
    return _UNSHOWN.sub(
        lambda found: found[0].encode("unicode_escape", "backslashreplace").decode("ascii"),
        _PASSWORD.sub("***@", str(text)),
    )


def printable_lines(text: str) -> str:
    """The same for text whose line breaks are meant."""
    return "\n".join(map(printable, text.split("\n")))


def show(text: str, file: TextIO | None = None) -> None:
    """Print a result; its line breaks are meant."""
    print(printable_lines(text), file=file)


def note(text: str) -> None:
    """Print a line about the work to standard error."""
    print(printable(text), file=sys.stderr)


def escape_what_the_terminal_lacks() -> None:
    """From now on write an escape for every character that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a text file, also under pytest


def reader_left(*, failed: bool = False) -> bool:
    """Write out what is held back; return whether a reader has closed its end, as `head` does when it has enough.

    What is written to such a stream later goes nowhere, also when Python flushes it at its end. `failed` says that
    writing somewhere has failed: then streams are asked too that hold nothing back.
    """
    left = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            gone = failed and _has_no_reader(stream.fileno())
        except BrokenPipeError:
            gone = True
        if gone:
            left = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return left


def _has_no_reader(descriptor: int) -> bool:
    asked = select.poll()
    asked.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def number(value: float) -> str:
    """About four digits, thousands separated; whole numbers without decimals."""
    size = abs(value)
    if float(value).is_integer() or size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def count(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`: for nouns with a plural in -s."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def share(value: float) -> str:
    """A fraction of 1 in percent."""
    return f"{100 * value:.1f} %"


def size(count: int) -> str:
    """Bytes in binary units."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(max(count.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{count / 1024**power:.4g} {units[power]}"


def shortened(text: str, length: int) -> str:
    """Return at most `length` characters of a text; the last one replaces what is cut off."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def whole_number(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value
