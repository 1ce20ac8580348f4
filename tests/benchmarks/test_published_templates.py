"""The comparison with published chat templates sees a conversation that is not the template's."""

import copy

import pytest
from support.tiny_models import TEMPLATES, tiny_tokenizer

from benchmarks.data.published_templates import compared
from nemo_longpo.data_tools.chat.format import ChatFormat

QUIET = {"enable_thinking": False}


def chat(template, told=None):
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen3"))
    tokenizer.chat_template = template
    return tokenizer, ChatFormat(tokenizer, template_kwargs=told)


@pytest.mark.parametrize(
    ("template", "told", "found"),
    [("qwen2.5", None, "exact"), ("qwen3", QUIET, "exact, earlier turns completed")],
)
def test_what_the_template_writes(template, told, found):
    assert compared(*chat(TEMPLATES[template], told), told or {}) == found


@pytest.mark.parametrize(
    ("written", "other", "found"),
    [
        ("user' %}", "user' %}{{ '.' }}", "the prompt of"),
        ("{{ text }}{% endif %}", "{{ text + '.' }}{% endif %}", "the answer"),
        ("not loop.last %}", "not loop.last %}{{ '.' }}", "the second question"),
    ],
)
def test_another_template(written, other, found):
    """The template changes after the chat format has read it: in a message, in the last answer, in an earlier one."""
    template = (
        "{% for m in messages %}{% set text = m['content'] %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'user' %}{{ text }}{% elif not loop.last %}{{ text }}{% else %}{{ text }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer, taken = chat(template)
    assert written in template
    tokenizer.chat_template = template.replace(written, other)
    assert compared(tokenizer, taken, {}).startswith(f"DIFFERENT: {found}")
