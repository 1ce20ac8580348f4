"""Tokens are shown as their text, whatever the tokenizer does to spaces and characters."""

import pytest
from support.tiny_models import STYLES, tiny_tokenizer

from nemo_longpo.data_tools.inspection.sample_view import Group, TokenText

TEXTS = ["The river crosses  the quiet village.\n\nOne letter\t", "naïve 灯塔建于 مرحبا 🙂👍🏽!", " 7 lamps"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", TEXTS)
def test_groups_cover_ids_and_text(style, text):
    tokenizer = tiny_tokenizer(style)
    lead = tokenizer("The old clock answers", add_special_tokens=False)["input_ids"]
    ids = lead + tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    groups = TokenText(tokenizer).groups(ids, len(lead))
    assert [group.start for group in groups] == [len(lead), *(group.end for group in groups[:-1])]
    assert groups[-1] == Group(len(ids) - 1, len(ids), tokenizer.eos_token, special=True)
    made = "".join(group.text for group in groups[:-1])
    assert made.strip(" ") == text.strip(" ")
    assert "\ufffd" not in made


def test_multi_token_character_is_one_group():
    tokenizer = tiny_tokenizer("qwen2.5")
    ids = tokenizer("a灯b", add_special_tokens=False)["input_ids"]
    assert [(group.text, group.end - group.start) for group in TokenText(tokenizer).groups(ids)] == [
        ("a", 1),
        ("灯", 3),
        ("b", 1),
    ]


def test_broken_characters_keep_all_tokens():
    tokenizer = tiny_tokenizer("qwen2.5")
    part = tokenizer("灯", add_special_tokens=False)["input_ids"][0]
    ids = [part] * 21 + tokenizer("x", add_special_tokens=False)["input_ids"]
    groups = TokenText(tokenizer).groups(ids)
    assert groups[-1].end == len(ids)
    assert groups[-1].text.endswith("x")
    assert all(group.end - group.start <= 8 for group in groups)


def test_tokens_are_ids_without_a_tokenizer():
    assert TokenText(None).groups([7, 8, 9], 1) == [Group(1, 2, "8 "), Group(2, 3, "9 ")]


@pytest.mark.parametrize("style", STYLES)
def test_start_inside_a_character(style):
    tokenizer = tiny_tokenizer(style)
    ids = tokenizer("灯塔建于费朗角", add_special_tokens=False)["input_ids"]
    for start in range(len(ids) - 6):
        assert "".join(group.text for group in TokenText(tokenizer).groups(ids, start)).endswith("朗角")
