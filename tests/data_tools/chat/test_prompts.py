import json
import random

import pytest

from nemo_longpo.data_tools.chat.prompts import Prompts, load_prompts, prompts_from_dict
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
        ('{"lead_ins": "In short:"}', r"key 'lead_ins' must be a list of texts \(\[\] for none\), not str"),
        ('{"lead_ins": ["In short:", " "]}', r"key 'lead_ins\[1\]' must be non-empty text, not ' '"),
        ("[]", "should hold a JSON object"),
        ("{", "is not readable JSON"),
    ],
)
def test_bad_prompt_files(tmp_path, content, message):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_prompts(path)


def test_what_is_recorded_loads_back():
    prompts = Prompts(ask="{instruction} {document}", lead_ins=("In short:",))
    assert prompts_from_dict(json.loads(json.dumps(prompts.to_dict())), "settings.json") == prompts
    assert prompts_from_dict({"ask": Prompts().ask}, "older settings.json") == Prompts()
    assert prompts_from_dict({"lead_ins": []}, "file").lead_ins == ()


def test_lead_ins_are_many_and_stand_before_any_instruction():
    lead_ins = Prompts().lead_ins
    assert len(set(lead_ins)) >= 12
    assert all(lead_in.endswith(":") and lead_in == lead_in.strip() for lead_in in lead_ins)
    drawn = {Prompts().with_lead_in("Who ran?", random.Random(seed)) for seed in range(200)}
    assert drawn == {f"{lead_in} Who ran?" for lead_in in lead_ins}
    assert {Prompts().without_lead_in(text) for text in drawn} == {"Who ran?"}


@pytest.mark.parametrize(
    "instruction", ["谁跑了？", "Кто бежал?", "من ركض؟", "1 + 1?", "According to the passage, who ran?"]
)
def test_instructions_that_take_no_lead_in(instruction):
    assert Prompts().with_lead_in(instruction, random.Random(0)) == instruction
    assert Prompts(lead_ins=()).with_lead_in("Who ran?", random.Random(0)) == "Who ran?"


def test_lead_ins_of_other_languages_follow_the_script_of_the_instruction():
    prompts = Prompts(lead_ins=("根据文本：", "Согласно тексту:"))
    assert prompts.with_lead_in("谁跑了？", random.Random(0)) == "根据文本：谁跑了？"
    assert prompts.with_lead_in("Кто бежал?", random.Random(0)) == "Согласно тексту: Кто бежал?"
    assert prompts.with_lead_in("Who ran?", random.Random(0)) == "Who ran?"
    assert prompts.without_lead_in("根据文本：谁跑了？") == "谁跑了？"
