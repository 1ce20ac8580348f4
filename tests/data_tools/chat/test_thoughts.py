"""Answers of models that think, and templates that leave thoughts out or write earlier turns otherwise."""

import copy

import pytest
from support.tiny_models import tiny_tokenizer

from nemo_longpo.data_tools import pairs
from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.data_tools.engines.engine import Completion
from nemo_longpo.data_tools.runner.rows import Row
from nemo_longpo.data_tools.stages import filter as filtering, respond
from nemo_longpo.errors import InputError

OPENING = "{{ '<|im_start|>' + m['role'] + '\n' }}"
CLOSING = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# Every answer: what stands behind the last sign of a conclusion. The last answer: without line breaks in front.
CUTS = (
    "{% for m in messages %}" + OPENING + "{% set said = m['content'].split('SO:')[-1] %}"
    "{{ m['content'] if m['role'] == 'user' else said.lstrip('\n') if loop.last else said }}" + CLOSING
)
# The same of earlier answers alone.
CUTS_EARLIER = (
    "{% for m in messages %}" + OPENING + "{% set all = m['role'] == 'user' or loop.last %}"
    "{{ m['content'] if all else m['content'].split('SO:')[-1] }}" + CLOSING
)
REFUSES = (
    "{% for m in messages %}" + OPENING + "{% if 'SO:' in m['content'] %}{{ raise_exception('no conclusions') }}"
    "{% endif %}{{ m['content'] }}" + CLOSING
)


def chat(template):
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2.5"))
    tokenizer.chat_template = template
    return ChatFormat(tokenizer)


@pytest.mark.parametrize("template", [CUTS, CUTS_EARLIER, REFUSES])
def test_answers_that_the_template_rewrites(template):
    """They are recorded, left out and refused; white space at the ends is no change."""
    found = chat(template)
    assert found.rewrites("It rained. SO: the river rose.")
    assert not found.rewrites("The river rose.")
    assert not found.rewrites("\n\nThe river rose. \n")
    written = respond._answer("chosen", Completion(found.response_ids("It rained. SO: it rose."), "stop"), found)
    assert written["chosen_rewritten"] is True
    assert "rejected_rewritten" not in respond._answer("rejected", Completion(found.response_ids("No"), "stop"), found)
    turn = {"chunk": "A boat.", "instruction": "Who?", "chosen": "Ann.", "rejected": "It rained. SO: it rose."}
    pair = pairs.parse_pair(Row({"doc_id": "d", "document": "A boat.", "turns": [turn]}, "line 1"))
    with pytest.raises(InputError, match=r"turns\[0\].rejected' holds text that the chat template of .* leaves out"):
        pairs.check_answers(pair, found, "line 1")
    seen = filtering._seen_by_model(found, pair.turns[0])
    assert (seen["chosen_rewritten"], seen["rejected_rewritten"]) == (False, True)


def test_an_answers_white_space_is_what_the_template_leaves():
    found = chat(CUTS)
    answer = found.response_ids("\n\nThe river. \n")
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "\n\nThe river. \n"}]
    whole = found.tokenizer.apply_chat_template(messages)
    begun = [*found.prompt("Who?"), *found.finished(answer)]
    assert begun == whole[: len(begun)]
    assert found.tokenizer.decode(answer) == "The river. \n"


def test_thoughts_in_pairs_are_refused():
    turn = {"chunk": "A boat.", "instruction": "Who?", "chosen": "<think>\nHm.\n</think>\n\nAnn.", "rejected": "Bob."}
    pair = pairs.parse_pair(Row({"doc_id": "d", "document": "A boat.", "turns": [turn]}, "line 1"))
    with pytest.raises(InputError, match=r"line 1: field 'turns\[0\].chosen' holds a thought, and answers that think"):
        pairs.check_answers(pair, chat("{% for m in messages %}" + OPENING + "{{ m['content'] }}" + CLOSING), "line 1")


@pytest.mark.parametrize(
    ("earlier", "prompt", "message"),
    [
        # Earlier answers behind another opening than that which prompted for them.
        ("(told) ", "", r"prompts for an answer with .*assistant\\n' but writes answers after .*assistant\\n\(told\) "),
        # The second question is prompted for otherwise than the first.
        ("", "{% if messages | length > 1 %}{{ 'Again: ' }}{% endif %}", "prompts for an answer with .*Again: '"),
    ],
)
def test_every_turn_is_prompted_for_as_it_is_written(earlier, prompt, message):
    """A template may differ in its later turns alone."""
    template = (
        "{% for m in messages %}" + OPENING + "{% if m['role'] == 'assistant' and not loop.last %}{{ '"
        f"{earlier}"
        "' }}{% endif %}{{ m['content'] }}"
    )
    with pytest.raises(InputError, match=message):
        chat(template + CLOSING.removesuffix("{% endif %}") + prompt + "{% endif %}")
