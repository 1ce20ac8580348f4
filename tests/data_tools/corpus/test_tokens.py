"""Token ends through windows are those of the whole text."""

import random

import pytest
from support.small_corpus import make_document
from support.tiny_models import STYLES, tiny_tokenizer

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.data_tools.corpus.tokens import token_ends


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
def test_windows_give_what_the_whole_text_gives(style):
    chat = ChatFormat(tiny_tokenizer(style))
    lengths = []

    def encode(piece):
        lengths.append(len(piece))
        return chat.token_ends(piece)

    for seed in range(12):
        text = mixed_text(seed)
        assert list(token_ends(encode, text, window=500, overlap=150)) == chat.token_ends(text)
    assert max(lengths) <= 500


def test_what_cannot_be_joined_is_encoded_whole():
    """Threes of a long run are counted from where a window starts."""

    def threes(text):
        return [*range(3, len(text), 3), len(text)]

    text = "a" * 1000
    assert list(token_ends(threes, text, window=100, overlap=50)) == threes(text)


def test_one_common_end_is_not_enough_for_a_join():
    """An encoder that sees other tokens near the end of what it is given."""

    def encode(text):
        edge = len(text) - 10
        return [end for end in range(1, len(text) + 1) if end > edge or text[end - 1] == "."]

    text = "abcdefghi." * 100
    assert list(token_ends(encode, text, window=100, overlap=14)) == encode(text)
