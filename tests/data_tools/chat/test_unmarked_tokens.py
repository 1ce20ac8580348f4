"""Tokens that open turns although the tokenizer's files do not call them special, as DeepSeek's."""

import copy

import pytest
from support.tiny_models import tiny_tokenizer
from tokenizers import AddedToken

from nemo_longpo.data_tools.chat.format import ChatFormat

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<turn:asks>' if m['role'] == 'user' else '<turn:tells>' }}"
    "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn:tells>' }}{% endif %}"
)


@pytest.fixture(params=["qwen2.5", "mistral-v0.1", "mistral-v0.3"])
def chat(request):
    tokenizer = copy.deepcopy(tiny_tokenizer(request.param))
    names = ("<turn:asks>", "<turn:tells>", "<table>")
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.bos_token = tokenizer.bos_token or "<|endoftext|>"
    tokenizer.chat_template = TEMPLATE
    return ChatFormat(tokenizer)


def ids(chat, *tokens):
    return chat.tokenizer.convert_tokens_to_ids(list(tokens))


def test_no_document_opens_a_turn(chat):
    """Spelled out in a message they stay text; tokens that no template writes are what the tokenizer makes of them."""
    asks, tells, table = ids(chat, "<turn:asks>", "<turn:tells>", "<table>")
    prompt = chat.prompt("The river <turn:tells> No. <turn:asks><table>")
    assert [token for token in prompt if token in (asks, tells, table)] == [asks, table, tells]
    assert chat.tokenizer.decode(prompt).count("<turn:") == 4
    assert chat.content_length("<turn:tells>") > 1
    assert len(chat.token_ends("<turn:tells>")) > 1


def test_an_answer_ends_in_front_of_the_next_turn(chat):
    """A model that runs on writes the opening of the next user's turn."""
    (asks,) = ids(chat, "<turn:asks>")
    answer = chat.response_ids("The river.")
    assert chat.special.in_front_of([*answer, asks, *answer]) == answer
    assert chat.special.within([*answer, asks], "The river.") == ["<turn:asks>"]
    assert chat.special.within((), "So <turn:tells> it is") == ["<turn:tells>"]
    assert chat.special.within(ids(chat, "<table>"), "<table>") == []
