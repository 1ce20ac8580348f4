"""Print text that came from somewhere else: document ids, values of a configuration, words of a server, file names."""

import re
import sys
from typing import TextIO

# Control characters but the tab; line and paragraph separators, which some terminals break at; what turns the
# direction of writing around; characters that cannot be seen; halves of characters, which stand for the bytes of file
# names that are not UTF-8.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_PASSWORD = re.compile(r"(?<=://)[^\s/@]+@")


def printable(text: object) -> str:
    """One line that a terminal shows and does not obey: what would move, colour or hide text is written as an escape,
    `\\x1b` for one, and a user name and password in an address as `***`."""
    return _UNSHOWN.sub(_escape, _PASSWORD.sub("***@", str(text)))


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
    """From now on a character that the terminal's encoding does not have is written as an escape, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a text file, also under pytest


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "backslashreplace").decode("ascii")
