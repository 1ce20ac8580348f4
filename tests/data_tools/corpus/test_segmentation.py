"""The best place to cut, for every domain."""

import pytest

from nemo_longpo.data_tools.corpus.segmentation import SEGMENTATIONS, best_cut, trimmed

LEAD = "w" * 300 + " "


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


def test_code_is_cut_in_a_line_only_if_there_is_no_other():
    assert cut("code", "a\n" + "b " * 20) == "a|\n" + "b " * 20
    assert cut("code", "b " * 20).count("\n") == 0
    assert cut("prose", "a\n" + "b " * 20) != "a|\n" + "b " * 20


def test_a_boundary_is_seen_although_the_line_behind_it_is_beyond_the_limit():
    text = "One two three. Four\n\\section{Five}\nsix"
    assert cut("latex", text, limit=20) == "One two three. Four|\n\\section{Five}\nsix"


def test_a_cut_never_leaves_a_chunk_empty():
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
