import json

import pytest

from nemo_longpo.data_tools.chat.prompts import Prompts, load_prompts
from nemo_longpo.data_tools.stages.instruct import parse_instructions
from nemo_longpo.errors import InputError


def test_braces_in_documents_stay():
    prompts = Prompts(ask="{instruction} | {document}")
    assert prompts.ask_about("def f(): {instruction} {x}", "why {document}?") == (
        "why {document}? | def f(): {instruction} {x}"
    )
    assert Prompts().request_instructions("TEXT", 4).count("TEXT") == 1
    assert " 4 " in Prompts().request_instructions("TEXT", 4)


def test_a_file_replaces_the_wording(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"ask": "{document} {instruction}"}))
    assert load_prompts(path) == Prompts(ask="{document} {instruction}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"ask": "{document}"}', r"prompts.json: key 'ask' lacks the placeholder \{instruction\}"),
        ('{"question": "x"}', "unknown key 'question'"),
        ('{"ask": 3}', "key 'ask' must be text"),
        ("[]", "must hold a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_prompt_files(tmp_path, content, message):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_prompts(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Who ran?\n2) Why?\n(3) When?\n4. Where?\n5. Too many", ["Who ran?", "Why?", "When?", "Where?"]),
        ("Here you are:\n\n**1.** Who ran?\n**2.** **Why?**", ["Who ran?", "Why?"]),
        ("- Who ran?\n* Why?\n- Who ran?", ["Who ran?", "Why?"]),
        ("Who ran?\n\nWhy?", ["Who ran?", "Why?"]),
        ("  \n", []),
    ],
)
def test_instruction_lists(text, expected):
    assert parse_instructions(text, 4, truncated=False) == expected


def test_a_single_instruction_is_the_whole_answer_and_a_cut_list_loses_its_last_line():
    assert parse_instructions(" what is\nit ", 1, truncated=True) == ["what is\nit"]
    assert parse_instructions("1. Who ran?\n2. Why did th", 4, truncated=True) == ["Who ran?"]
