r"""Find what kind of text a document is, and where a text of that kind may be cut.

Every domain has a ranked list of boundaries to cut at, and one function works with any list.

A cut is made at the end of a match, without its trailing white space, so a pattern of the form `\n(?=...)` cuts before
a line. No pattern begins with a repetition of line breaks, so that a search takes time linear in the text.

All kinds of line ends count. The patterns know only line feeds, so they search a text in which each other line end is
replaced by one of the same length: `with_line_feeds`.
"""

import re
from dataclasses import dataclass
from typing import Literal

Domain = Literal["prose", "latex", "code"]

_SUFFIXES: dict[Domain, tuple[str, ...]] = {
    "prose": (".md", ".rst"),
    "latex": (".tex", ".ltx"),
    "code": (
        *(".c", ".cc", ".cpp", ".cs", ".cu", ".cuh", ".cxx", ".dart", ".ex", ".exs", ".f90", ".go", ".h", ".hh"),
        *(".hpp", ".hs", ".java", ".jl", ".js", ".jsx", ".kt", ".lua", ".mjs", ".ml", ".php", ".pl", ".py", ".pyi"),
        *(".pyx", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".sv", ".swift", ".ts", ".tsx", ".v", ".zig"),
    ),
}
# A .txt file may hold text of any domain.
TEXT_SUFFIXES = (".txt", *(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes))
CODE_SUFFIXES = _SUFFIXES["code"]

_SAMPLE = 1 << 16  # characters
_LATEX_SHARE = 0.02
_CODE_SHARE = 0.3
_DOCUMENT_CLASS = re.compile(r"^[ \t]*\\documentclass\b", re.M)
_LATEX_LINE = re.compile(r"[ \t]*\\(?:begin|end|part|chapter|(?:sub)*section|label|item)\b")
_CODE_LINE = re.compile(
    r"""
      .*(?:[;{}]|\):?)[ \t]*$                                         # ends like a statement or opens a block
    | [ \t]*(?:@\w|//|/\*|\*/|\#include\b|\#!)                        # a decorator, a comment, a directive
    | [ \t]*[\w.\[\]]+[ \t]*[-+*/|:]?=[ \t]*\S                        # an assignment
    | [ \t]*(?:import|from|def|class|func|fn|return|package|use|export|const|let|var)[ \t].*[^.?!,][ \t]*$
    | [ \t]*(?:if|elif|else|for|while|with|try|except|switch|case)\b.*[:{][ \t]*$
    """,
    re.X,
)


def domain_of(name: str, text: str) -> Domain:
    """Return the domain of a document by the suffix of its name, or else by its first 65,536 characters.

    LaTeX has a \\documentclass, or structure commands at the start of at least 2 % of its lines; at least 30 % of the
    lines of code look like code. Everything else is prose, and so is a text of fewer than three lines.
    """
    suffix = name[name.rfind(".") :].lower()
    for domain, suffixes in _SUFFIXES.items():
        if suffix in suffixes:
            return domain
    sample = text[:_SAMPLE].replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in sample.splitlines() if line.strip()]
    if len(lines) < 3:
        return "prose"
    if _DOCUMENT_CLASS.search(sample) or _share(_LATEX_LINE, lines) >= _LATEX_SHARE:
        return "latex"
    return "code" if _share(_CODE_LINE, lines) >= _CODE_SHARE else "prose"


def _share(pattern: re.Pattern[str], lines: list[str]) -> float:
    return sum(pattern.match(line) is not None for line in lines) / len(lines)


@dataclass(frozen=True)
class Boundary:
    """A pattern to cut at; `earliest` is the share of a chunk's room that must lie before the cut."""

    pattern: re.Pattern[str]
    earliest: float


@dataclass(frozen=True)
class Segmentation:
    """Boundaries from the best to the worst. `keeps_indent`: the first line of a chunk keeps its indentation."""

    boundaries: tuple[Boundary, ...]
    keeps_indent: bool = False


# A cut in the first half of a chunk would leave out too many tokens.
_EARLIEST = 0.5
# How far a pattern looks beyond the limit, to see the line after a cut.
_LOOKAHEAD = 256


def _ranked(*patterns: str, earliest: float = _EARLIEST) -> tuple[Boundary, ...]:
    return tuple(Boundary(re.compile(pattern, re.M), earliest) for pattern in patterns)


_HEADINGS = _ranked(
    r"\n(?=# \S|\S.*\n={3,}[ \t]*$)",
    r"\n(?=## \S|\S.*\n-{3,}[ \t]*$)",
    r"\n(?=#{3,6} \S)",
)
_PARAGRAPHS = _ranked(
    r"\n[ \t]*\n\s*|\u2029\s*",
    r"[.!?…][\"'”’)\]]*\s+|[。！？]",
    r"\n",
    r"\s+",
)
_SECTIONS = _ranked(
    *(
        rf"\n(?=[ \t]*\\{command}\b)"
        for command in ("part", "chapter", "section", "subsection", "subsubsection", "(?:sub)?paragraph")
    )
)
# What people put between the files of one document.
_FILE_MARK = (
    r"<\|?file_sep\|?>|diff --git |==> .+ <==[ \t]*$"
    r"|(?:#|//|--) ?(?:[Ff]ile(?:name)?:)? ?[\w.-]+(?:/[\w.-]+)+\.\w+[ \t]*$"
)
_DEFINITION = (
    r"@\w|(?:(?:export|default|public|private|protected|internal|abstract|final|static|inline|async|pub(?:\(\w+\))?|"
    r"unsafe|extern|template|constexpr|typedef) )*"
    r"(?:def|class|func|fun|function|fn|struct|enum|union|interface|trait|impl|type|namespace|module|mod|template)\b"
)
# Lines at the margin that belong to those above them.
_CONTINUATION = r"[)\]}]|(?:else|elif|except|finally|catch|end|fi|done|esac|then|do)\b"
_INDENTED_ONCE = rf"(?: {{1,4}}|\t)(?=\S)(?!{_CONTINUATION})"
_INDENTED_TWICE = rf"(?: {{5,8}}|\t\t)(?=\S)(?!{_CONTINUATION})"
_DEFINITIONS = _ranked(
    rf"\n(?={_FILE_MARK})",
    rf"\n[ \t]*\n(?={_DEFINITION})",
    rf"\n[ \t]*\n(?=\S)(?!{_CONTINUATION})",
    rf"\n(?=\S)(?!{_CONTINUATION})",
    rf"\n[ \t]*\n(?={_INDENTED_ONCE})",
    r"\n[ \t]*\n",
    rf"\n(?={_INDENTED_ONCE})",
    rf"\n(?={_INDENTED_TWICE})",
)
# Prefer a short chunk to one that ends in the middle of a line.
_CODE_LINES = _ranked(r"\n", earliest=0.0)

SEGMENTATIONS: dict[Domain, Segmentation] = {
    "prose": Segmentation(_HEADINGS + _PARAGRAPHS),
    "latex": Segmentation(_SECTIONS + _PARAGRAPHS),
    "code": Segmentation(_DEFINITIONS + _CODE_LINES + _ranked(r"\s+"), keeps_indent=True),
}


def with_line_feeds(text: str) -> str:
    """Return the text with a line feed at the end of every line, in the same length: indices stay valid."""
    if "\r" in text:
        text = text.replace("\r\n", " \n").replace("\r", "\n")
    return text.replace("\u2028", "\n").replace("\x85", "\n")


def best_cut(text: str, start: int, limit: int, segmentation: Segmentation) -> int:
    """Return the best place to end a chunk that starts at `start` and may reach `limit`, both indices into `text`.

    `text` has no other line ends than line feeds. White space after the cut may exceed the limit. Without a boundary
    the cut is at the limit itself.
    """
    first_word = _end_of_space(text, start, limit)
    for boundary in segmentation.boundaries:
        earliest = max(start + int((limit - start) * boundary.earliest), first_word + 1)
        matches = boundary.pattern.finditer(text, earliest, limit + _LOOKAHEAD)
        ends = [end for match in matches if (end := match.start() + len(match[0].rstrip())) <= limit]
        if ends:
            return ends[-1]
    return limit


def trimmed(text: str, start: int, end: int, segmentation: Segmentation) -> slice:
    """Return text[start:end] without white space at its ends; a line keeps its indentation if `keeps_indent`."""
    first_word = _end_of_space(text, start, end)
    if segmentation.keeps_indent:
        first_word = max(start, text.rfind("\n", start, first_word) + 1)
    return slice(first_word, first_word + len(text[first_word:end].rstrip()))


def _end_of_space(text: str, start: int, end: int) -> int:
    """Return the first index from `start` on that is not white space, at most `end`."""
    while start < end and text[start].isspace():
        start += 1
    return start
