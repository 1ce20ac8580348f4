"""At the border of template and message, tokens may hold a piece of both: ids are those of the whole rendering.

The vocabularies have tokens for runs of line breaks and of spaces, as those of real models do.
"""

import copy

import pytest
from hypothesis import given, settings, strategies as st
from support.tiny_models import STYLES, tiny_tokenizer
from tokenizers import AddedToken

from nemo_longpo.data_tools.chat.format import ChatFormat

LINES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] }}"
    "{% if m['role'] == 'user' %}{{ '\n\n' }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
# As Alpaca has it: no special token on either side of a message, and none between it and the answer.
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '### Task:\n' + m['content'] + '\n\n### Response:\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Q:  ' + m['content'] + '  A: ' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def with_template(style, template):
    tokenizer = copy.deepcopy(tiny_tokenizer(style))
    tokenizer.chat_template = template
    return tokenizer


def swallowing(tokenizer):
    """Special tokens that remove the white space around them, as Phi-3's do."""
    tokenizer = copy.deepcopy(tokenizer)
    marks = [AddedToken(text, special=True, lstrip=True, rstrip=True) for text in ("<|user|>", "<|end|>", "<|model|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|user|>\n' if m['role'] == 'user' else '<|model|>\n' }}{{ m['content'] }}"
        "{{ '\n<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|model|>\n' }}{% endif %}"
    )
    return tokenizer


TOKENIZERS = {style: tiny_tokenizer(style) for style in STYLES}
TOKENIZERS |= {
    f"{name} {style}": with_template(style, text)
    for name, text, style in (
        ("lines", LINES, "qwen2.5"),
        ("plain", PLAIN, "qwen2.5"),
        ("spaced", SPACED, "qwen2.5"),
        ("spaced", SPACED, "llama-3"),
        ("spaced", SPACED, "mistral-v0.1"),
        ("spaced", SPACED, "mistral-v0.3"),
    )
}
TOKENIZERS["swallowing"] = swallowing(tiny_tokenizer("qwen2.5"))
CHATS = {name: ChatFormat(tokenizer) for name, tokenizer in TOKENIZERS.items()}

BLANKS = st.text(st.sampled_from("\n\n\n \t\r"), max_size=6)
WORDS = st.text(st.sampled_from("The river crosses?!.#:[] \n\u0301é你🙂7"), min_size=1, max_size=12).filter(str.strip)
CONTENTS = st.builds(lambda *parts: "".join(parts), BLANKS, WORDS, BLANKS)


def rendered(name, messages, **options):
    """Spaces at the end of a prompt belong to the answer's first word."""
    text = TOKENIZERS[name].apply_chat_template(messages, tokenize=False, **options).rstrip(" ")
    return TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(content=CONTENTS)
def test_prompts_match_the_template(name, content):
    """The same message as a server renders it."""
    whole = rendered(name, [{"role": "user", "content": content}], add_generation_prompt=True)
    assert CHATS[name].prompt(content) == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(users=st.lists(CONTENTS, min_size=2, max_size=3), words=st.sampled_from(["A small boat", "12", "你好"]))
def test_long_sequences_match_the_template(name, users, words):
    chat = CHATS[name]
    answers = [chat.response_ids(words)] * len(users)
    pair = chat.long_pair(users, answers, answers)
    messages = [
        message
        for user in users
        for message in ({"role": "user", "content": user}, {"role": "assistant", "content": words})
    ]
    found = pair.trunk_ids + pair.chosen_ids
    assert found == rendered(name, messages)[: len(found)]
    assert [pair.chosen_ids[start:end] for start, end in pair.chosen_spans] == [chat.finished(ids) for ids in answers]


def test_border_token_belongs_to_message():
    """The NLL includes it, and excludes the rest of the template's text."""
    tokenizer, chat = TOKENIZERS["qwen2.5"], CHATS["qwen2.5"]
    pair = chat.long_pair(["\nThe river"], [[5]], [[6]])
    tokens = tokenizer.convert_ids_to_tokens(pair.trunk_ids)
    merged = tokens.index("ĊĊ")
    assert tokens[merged - 4 : merged] == ["<|im_start|>", "u", "s", "er"]
    assert pair.nll_ignore_spans[0] == (0, merged)
    assert chat.prompt("The river")[: merged + 1] != pair.trunk_ids[: merged + 1]


def test_answer_tokens_match_generation():
    """Its opening is read before its first token is, so nothing of an answer is in the opening's last token."""
    tokenizer, chat = TOKENIZERS["qwen2.5"], CHATS["qwen2.5"]
    opening = chat.template_ids(1)[1]
    assert chat.prompt("The river")[-len(opening) :] == opening
    assert tokenizer.convert_ids_to_tokens(chat.response_ids("\nThe"))[0] == "Ċ"
