"""The domain of a document by its name or its text, and the best place to cut it."""

import pytest
from support.small_corpus import make_document

from nemo_longpo.data_tools.corpus.segmentation import SEGMENTATIONS, best_cut, domain_of, trimmed

PYTHON = """import os

# Where a name stands is found out here, in words that a reader of prose could also read.
def find(names: list[str]) -> None:
    for name in names:
        print(os.path.join("a", name))
    total = len(names)
    return total
"""
C = """#include <stdio.h>

/* A list of words, in the order of their names. */
int main(void) {
    int n = 3;
    while (n--) {
        puts("x");
    }
}
"""
TABLE = "\n".join(f"{number}\tname {number}\t{number / 7:.2f}" for number in range(20))
LATEX = "\\section{One}\nText of the first section,\nover two lines.\n\\begin{equation}\n  a = b\n\\end{equation}\n"
POEM = """The river turns, the river stays;
A boat goes by (it has no oar).
For all who wait, if they still wait,
It is the same boat as before.
"""
MARKDOWN = "# Title\n\nSome words about `code`, and more words.\n\n* one\n* two\n\n    x = 1\n"
LEAD = "w" * 300 + " "


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (PYTHON, "code"),
        (C, "code"),
        (LATEX, "latex"),
        ("% preamble\n\n\\documentclass{book}\nA\nB\n", "latex"),
        (make_document(0), "prose"),
        (POEM, "prose"),
        (TABLE, "prose"),
        ("Put this first:\n\n> a \\documentclass line\n\nThen write.\n", "prose"),
        (MARKDOWN, "prose"),
        ("x = 1;", "prose"),
        ("", "prose"),
    ],
)
def test_by_text(text, domain):
    assert domain_of("corpus.jsonl:7", text) == domain
    assert domain_of("book.txt", text) == domain


def test_known_suffix_decides():
    assert domain_of("some/path/main.RS", POEM) == "code"
    assert domain_of("paper.tex", POEM) == "latex"
    assert domain_of("notes.md", C) == "prose"


def test_only_the_beginning_is_looked_at():
    assert domain_of("long", make_document(0, 400) + C * 2000) == "prose"


def cut(domain, text, limit=None):
    """The text with a "|" where it would be cut."""
    end = best_cut(text, 0, len(text) if limit is None else limit, SEGMENTATIONS[domain])
    return text[:end] + "|" + text[end:]


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        # Each text holds worse boundaries behind the best one.
        ("prose", "A text.|\n# One\n\n## Two\n\nA b."),
        ("prose", "A text.|\nHead\n====\n\n## Two\n\nC."),
        ("prose", "# One|\n## Two\n\n### Three\n\nC."),
        ("prose", "A text.|\nHead\n----\n\n### Three\n\nC."),
        ("prose", "A text, long|\n\nA b. C d\ne"),
        ("prose", "A text.| And so\non and so on"),
        ("prose", "文字文字。|文字 文字"),
        ("prose", "A text|\nand so on"),
        ("prose", "A text and so|\t on"),
        ("latex", "A text.|\n\\part{A}\n\\chapter{B}\nC"),
        ("latex", "A text.|\n\\chapter{B}\n\\section{C}\nD.\n\nE."),
        ("latex", "A text.|\n  \\section*{C}\n\\subsection{D}\n\nE. F"),
        ("latex", "A text.|\n\\subsection{D}\n\\subsubsection{E}\n\\paragraph{F} G"),
        ("latex", "A \\section text|\n\n\\sectional B. C\nD"),
        ("code", "def a():\n    return 1\n|\n\ndef b():\n    return 2\n\nx = 3"),
        ("code", "int a() {\n    x;\n\n    y;\n}|\n\n// Two.\nint b() {\n    z;\n}\n"),
        ("code", "class A:\n    def a(self):\n        b|\n\n    def b(self):\n        if c:\n\n            d\n"),
        ("code", "if a:\n    b\nelse:\n    c|\nd = [\n    e,\n]\n"),
        ("code", "    if a:\n        b|\n    if c:\n        if d:\n            e\n        else:\n            f\n"),
        ("code", "def a():\n    pass|\n# src/two.py\nimport a\n\ndef b():\n    pass"),
        ("code", "def a():\n    pass|\n<file_sep>import a\n\ndef b():\n    pass"),
    ],
)
def test_best_boundary(domain, expected):
    assert cut(domain, LEAD + expected.replace("|", "", 1)) == LEAD + expected


def test_code_is_cut_inside_a_line_last():
    assert cut("code", "a\n" + "b " * 20) == "a|\n" + "b " * 20
    assert cut("code", "b " * 20).count("\n") == 0
    assert cut("prose", "a\n" + "b " * 20) != "a|\n" + "b " * 20


def test_boundary_right_before_the_limit_is_seen():
    text = "One two three. Four\n\\section{Five}\nsix"
    assert cut("latex", text, limit=20) == "One two three. Four|\n\\section{Five}\nsix"


def test_chunks_are_never_empty():
    for domain in SEGMENTATIONS:
        assert cut(domain, "\n\n\nabcdef", limit=6) == "\n\n\nabc|def"


def test_indentation_counts_in_code_only():
    text = "x\n\n    \n    if a:\n        b\n\n"
    assert text[trimmed(text, 1, len(text), SEGMENTATIONS["code"])] == "    if a:\n        b"
    assert text[trimmed(text, 1, len(text), SEGMENTATIONS["prose"])] == "if a:\n        b"
    assert text[trimmed(text, 10, len(text), SEGMENTATIONS["code"])] == "  if a:\n        b"


def test_long_runs_take_linear_time():
    """A quadratic search would take minutes here."""
    runs = ("\n", " ", "\n ", ")", ".", "#", "/", "a/", "# a/", "=", "@", "end", "if a/b.c", "\\section")
    for domain, segmentation in SEGMENTATIONS.items():
        for run in runs:
            text = "x" + run * (60_000 // len(run))
            assert 0 < best_cut(text, 0, len(text) - 300, segmentation) <= len(text), domain
