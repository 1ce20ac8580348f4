"""What a document is, by its name or its text."""

import pytest
from support.small_corpus import make_document

from nemo_longpo.data_tools.corpus.domains import domain_of

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


def test_a_known_suffix_decides():
    assert domain_of("some/path/main.RS", POEM) == "code"
    assert domain_of("paper.tex", POEM) == "latex"
    assert domain_of("notes.md", C) == "prose"


def test_only_the_beginning_is_looked_at():
    assert domain_of("long", make_document(0, 400) + C * 2000) == "prose"
