"""What kind of text a document is, by the suffix of its name or by a look at its beginning."""

import re
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
    """The domain of a document by the suffix of its name or, where that says nothing, by its first 65,536 characters.

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
