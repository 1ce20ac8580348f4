"""Chunks: exact substrings, in order, never above the limit; token ends are those of the whole text."""

import random
import re

import pytest
from support.small_corpus import make_document
from support.tiny_models import STYLES, tiny_tokenizer

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.data_tools.corpus.chunking import chunk_document, draw_chunks, token_ends
from nemo_longpo.data_tools.corpus.segmentation import domain_of


def words_as_tokens(text):
    ends, position = [], 0
    for word in text.split(" "):
        position += len(word)
        ends.append(position)
        position += 1
    return ends


def chunk_words(text, limit):
    return chunk_document(text, words_as_tokens(text), lambda chunk: len(chunk.split()), limit)


def test_short_document_is_one_chunk():
    assert chunk_words("one two three", 5) == ["one two three"]


def test_paragraphs_come_before_sentences_before_words():
    text = "a b. c d.\n\n e f g h. i j k l m n o p"
    assert chunk_words(text, 6) == ["a b. c d.", "e f g h.", "i j k l m n", "o p"]


def test_early_boundary_is_not_used():
    assert chunk_words("a.\n\n b c d e f g h i j", 8) == ["a.\n\n b c d e f g h", "i j"]


def test_short_rest_is_left_out():
    assert chunk_words("a b c d e f g h i", 8) == ["a b c d e f g h"]
    assert chunk_words("a", 8) == ["a"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("limit", [7, 32, 100])
def test_limits_hold_for_real_tokenizers(style, limit):
    chat = ChatFormat(tiny_tokenizer(style))
    text = make_document(3, 12) + "naïve 你好。世界 🙂 " * 20 + "x" * 300
    chunks = chunk_document(text, chat.token_ends(text), chat.content_length, limit)
    position = 0
    for chunk in chunks:
        assert chat.content_length(chunk) <= limit
        assert chunk == chunk.strip()
        position = text.index(chunk, position) + len(chunk)
    assert sum(map(len, chunks)) > 0.8 * len(text)


CODE = "".join(
    f"def f{n}(x):\n    if x:\n        return {n}\n\n    y = [\n        x,\n    ]\n    return y\n\n\n" for n in range(9)
)
LATEX = "".join(f"\\section{{{n}}}\nA text.\n\\subsection{{b}}\n\nAnd more of it\non two lines.\n" for n in range(9))
PROSE = "".join(f"# Part {n}\n\nOne line\nand two. Then three.\n  \nA paragraph.\n\n" for n in range(9))


@pytest.mark.parametrize("line_end", ["\r\n", "\r", "\u2028", "\x85"])
@pytest.mark.parametrize(("domain", "text"), [("code", CODE), ("latex", LATEX), ("prose", PROSE)])
def test_line_ends_do_not_change_chunks(line_end, domain, text):
    """A line end is one token here, so that limits mean the same."""

    def chunks_of(text):
        ends = [match.end() for match in re.finditer(r"\r\n|.", text, re.S)]
        return chunk_document(text, ends, lambda chunk: len(re.findall(r"\r\n|.", chunk, re.S)), 60, domain)

    expected = chunks_of(text)
    assert len(expected) > 5
    assert chunks_of(text.replace("\n", line_end)) == [chunk.replace("\n", line_end) for chunk in expected]
    assert domain_of("page.txt", text.replace("\n", line_end)) == domain


@pytest.mark.parametrize("between", ["\n\n", "\r\n\r\n", "\r\r", "\u2029", "\r\n \r\n"])
@pytest.mark.parametrize("style", STYLES)
def test_chunks_end_with_paragraphs_in_any_script(style, between):
    chat = ChatFormat(tiny_tokenizer(style))
    paragraphs = make_document(1, 14).strip().split("\n\n")
    text, limit = between.join(paragraphs), 5 * max(map(chat.content_length, paragraphs)) // 2
    chunks = chunk_document(text, chat.token_ends(text), chat.content_length, limit)
    assert len(chunks) >= 4
    for chunk in chunks:
        assert chunk.split(between)[-1] in paragraphs
        assert chunk.split(between)[0] in paragraphs


def test_draws_are_ordered_and_seeded():
    chunks = [str(number) for number in range(20)]
    drawn = draw_chunks(chunks, 4, seed=1)
    assert len(drawn) == 4
    assert drawn == sorted(drawn, key=int)
    assert drawn == draw_chunks(chunks, 4, seed=1)
    assert drawn != draw_chunks(chunks, 4, seed=2)
    assert draw_chunks(chunks[:3], 4, seed=1) == ["0", "1", "2"]


def mixed_text(seed):
    """Prose, code, digits, runs of one character, other scripts, combining marks and random characters."""
    choose = random.Random(seed)
    kinds = (
        lambda: make_document(choose.randrange(1000), 1),
        lambda: "def f(x):\n    return x  # 12345678\n\n\n",
        lambda: "".join(choose.choices("ab 7\n", k=50)),
        lambda: choose.choice("x 7\n=é你🙂") * choose.randrange(1, 60),
        lambda: "naïve 你好。世界 🙂 e\u0301 ",
        lambda: "".join(chr(choose.randrange(32, 0x2FFF)) for _ in range(20)),
    )
    return "".join(choose.choice(kinds)() for _ in range(60))


@pytest.mark.parametrize("style", STYLES)
def test_windows_match_whole_text_tokens(style):
    chat = ChatFormat(tiny_tokenizer(style))
    lengths = []

    def encode(piece):
        lengths.append(len(piece))
        return chat.token_ends(piece)

    for seed in range(12):
        text = mixed_text(seed)
        assert list(token_ends(encode, text, window=500, overlap=150)) == chat.token_ends(text)
    assert max(lengths) <= 500


def test_text_without_a_join_is_encoded_whole():
    """Threes of a long run are counted from where a window starts."""

    def threes(text):
        return [*range(3, len(text), 3), len(text)]

    text = "a" * 1000
    assert list(token_ends(threes, text, window=100, overlap=50)) == threes(text)


def test_one_common_end_does_not_join():
    """An encoder that sees other tokens near the end of what it is given."""

    def encode(text):
        edge = len(text) - 10
        return [end for end in range(1, len(text) + 1) if end > edge or text[end - 1] == "."]

    text = "abcdefghi." * 100
    assert list(token_ends(encode, text, window=100, overlap=14)) == encode(text)
