"""Lists of requests that are made at random, in every style of numbering: what is read back is what was written."""

import json

import pytest
from hypothesis import given, settings, strategies as st

from nemo_longpo.data_tools.prompts import Prompts
from nemo_longpo.data_tools.quality.usable_requests import Wording, read_requests

WORDING = Wording(Prompts().request_instructions("", 4))


def parse_instructions(answer, count, *, truncated):
    return read_requests(answer, count, "", WORDING, truncated=truncated).requests


WORDS = st.sampled_from(["river", "clock", "captain", "winter", "daughter", "1984", "Lisbon", "old", "and"])
LATIN = st.builds(
    lambda start, middle, end: " ".join([start, *middle]) + end,
    st.sampled_from(["Explain", "Compare", "Who saw", "Why did", "List", "What is"]),
    st.lists(WORDS, min_size=2, max_size=14),
    st.sampled_from(["?", "."]),
)
CHINESE = st.builds(
    lambda middle, end: "请说明" + "".join(middle) + end,
    st.lists(st.sampled_from(["河", "钟", "船", "信", "海", "港", "冬", "女", "儿", "旧"]), min_size=3, max_size=12),
    st.sampled_from(["？", "。"]),
)


def distinct(items):
    return st.lists(items, min_size=2, max_size=6, unique_by=lambda item: item.rstrip("?.？。").casefold())


def numbered(mark):
    return lambda items: [mark.format(n=number, text=item) for number, item in enumerate(items, 1)]


MARKS = [
    "{n}. {text}",
    "{n}) {text}",
    "({n}) {text}",
    "[{n}] {text}",
    "{n}: {text}",
    "{n} - {text}",
    "{n}、{text}",
    "  {n}. {text}",
    "- {n}. {text}",
    "**{n}.** {text}",
    "**{n}. {text}**",
    "**{n}**. {text}",
    "{n}. “{text}”",
    "{n}. `{text}`",
    "{n}. **Topic:** {text}",
    "{n}. **Some topic**\n   {text}",
    "Question {n}: {text}",
    "Q{n}. {text}",
    "**Request {n}:** {text}",
    "### Task {n}\n{text}",
    "问题{n}：{text}",
    "Вопрос {n}. {text}",
    "سؤال {n}: {text}",
    "- {text}",
    "* {text}",
    "• {text}",
    "▪ *{text}*",
    "+ {text}",
    "— {text}",
    "- **{text}**",
    "- 「{text}」",
    '- "{text}"',
    "Instruction: {text}",
    "<q>{text}</q>",
    "{text}",
    '"{text}",',
]
STYLES = {mark: numbered(mark) for mark in MARKS}
STYLES |= {
    "letters": lambda items: [f"{letter}) {item}" for letter, item in zip("abcdef", items, strict=False)],
    "roman": lambda items: [
        f"{n}. {item}" for n, item in zip(["i", "ii", "iii", "iv", "v", "vi"], items, strict=False)
    ],
    "JSON": lambda items: [json.dumps(items, indent=2)],
    "JSON in ASCII": lambda items: [json.dumps({"questions": items}, ensure_ascii=True)],
    "full width": lambda items: [f"{chr(0xFF10 + n)}．{item}" for n, item in enumerate(items, 1)],
}
PREAMBLES = st.sampled_from(["", "Sure! Here are some requests:\n\n", "Here are your questions:\n", "好的：\n\n"])
CLOSINGS = st.sampled_from(["", "\n\nLet me know if you need more.", "\n\n---\n\nI hope these are useful!"])


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
@settings(deadline=None, max_examples=30)
@given(
    items=st.one_of(distinct(LATIN), distinct(CHINESE)),
    before=PREAMBLES,
    after=CLOSINGS,
    gap=st.sampled_from(["\n", "\n\n"]),
    fence=st.booleans(),
)
def test_lists_in_any_style_are_read(style, items, before, after, gap, fence):
    body = gap.join(STYLES[style](items))
    text = before + (f"```\n{body}\n```" if fence else body) + after
    assert parse_instructions(text, len(items), truncated=False) == items


@settings(deadline=None)
@given(items=distinct(LATIN), data=st.data(), mark=st.sampled_from(["{n}. {text}", "- {text}", "({n}) {text}"]))
def test_wrapped_items_are_read(items, data, mark):
    def wrap(item):
        words = item.split(" ")
        cut = data.draw(st.integers(1, len(words) - 1))
        return " ".join(words[:cut]) + "\n    " + " ".join(words[cut:])

    text = "\n".join(numbered(mark)([wrap(item) for item in items]))
    assert parse_instructions(text, len(items), truncated=False) == items


@settings(deadline=None)
@given(items=distinct(LATIN), cut=st.integers(1, 8))
def test_truncation_never_gives_half_an_item(items, cut):
    text = "\n".join(numbered("{n}. {text}")(items))
    assert parse_instructions(text[:-cut], 9, truncated=True) == items[:-1]


@settings(deadline=None)
@given(st.text(max_size=300), st.integers(1, 5), st.booleans())
def test_any_text_gives_clean_items(text, count, truncated):
    found = parse_instructions(text, count, truncated=truncated)
    assert len(found) <= count
    assert all(item == item.strip() != "" for item in found)
