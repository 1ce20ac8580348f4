import pytest

from nemo_longpo.data_tools.quality.language import contained, length_in_words, needs_space, script, similarity, words


def test_words_in_spaced_and_unspaced_scripts():
    assert words("Who's ＡＤＡ, 3.5?") == ["who", "s", "ada", "3", "5"]
    assert words("他说AI好。") == ["他", "说", "ai", "好"]
    assert length_in_words("他说AI好。") == 2.5
    assert length_in_words("Кто бежал домой?") == 3


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("a b c d", "A  b c\nd", 1.0),
        ("a b c d", "a b c e", 0.5),  # one of two 3-grams each
        ("a b", "a c", 0.0),  # 2-grams, because the texts are short
        ("a", "a b", 2 / 3),  # 1-grams
        ("a b", "", 0.0),
        ("x < 5", "x > 5", 0.0),
        ("A beats B", "B beats A", 0.0),
        ("a b c " * 4, "a b c", 2 / 11),  # repeats count: 10 and 1 3-grams
        ("他说船很好", "他说船不好", 1 / 3),
    ],
)
def test_similarity(left, right, expected):
    assert similarity(left, right) == pytest.approx(expected)
    assert similarity(right, left) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        ("a b c d", "x, A b c d! y", 1.0),
        ("x a b c d y", "a b c d", 0.5),  # two of four 3-grams
        ("b c", "a b c d", 1.0),  # 2-grams, because the part is short
        ("a b c " * 3, "a b c", 1 / 7),  # each repeat needs one of its own
        ("", "a", 0.0),
        ("a", "", 0.0),
    ],
)
def test_contained_share(part, whole, expected):
    assert contained(part, whole) == pytest.approx(expected)


def test_scripts_and_joints():
    assert [script(text) for text in ("Who ran?", "Кто?", "ひらカタ漢字", "12 + 3")] == ["LATIN", "CYRILLIC", "CJK", ""]
    assert script("Кто такой Bob?") == "CYRILLIC"
    assert needs_space("a", "b")
    assert needs_space("", "文")
    assert not needs_space("根据：", "文")
