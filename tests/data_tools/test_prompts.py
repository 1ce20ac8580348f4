import json
import random
import re

import pytest

from nemo_longpo.data_tools.prompts import Prompts, load_prompts, prompts_from_dict
from nemo_longpo.data_tools.quality.language import language, names_text
from nemo_longpo.data_tools.quality.usable_requests import points_at_passage
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


def test_recorded_values_load_back():
    prompts = Prompts(ask="{instruction} {document}", lead_ins=("In short:",))
    assert prompts_from_dict(json.loads(json.dumps(prompts.to_dict())), "settings.json") == prompts
    assert prompts_from_dict({"ask": Prompts().ask}, "older settings.json") == Prompts()
    assert prompts_from_dict({"lead_ins": []}, "file").lead_ins == ()


LED = {
    "en": ("Who ran?", "Compare the two letters."),
    "es": ("¿Quién reparó el reloj?", "Explica por qué se fue el capitán."),
    "fr": ("Qui a réparé la vieille horloge du port ?", "Comparez les deux lettres."),
    "de": ("Wer hat die Uhr repariert?", "Vergleiche die beiden Briefe."),
    "pt": ("Quem consertou o relógio?", "Descreva a reação da aldeia."),
    "it": ("Chi ha riparato il vecchio orologio?", "Confronta le due lettere che si trovano nel porto."),
    "ru": ("Кто бежал?", "Сравните два письма."),
    "zh": ("谁跑了？", "比较这两封信。"),
    "ja": ("誰が走りましたか？", "二通の手紙を比べてください。"),
    "ko": ("누가 달렸습니까?", "두 편지를 비교하세요."),
    "ar": ("من ركض؟", "قارن بين الرسالتين."),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LED)
def test_lead_ins_are_in_the_language_of_the_instruction(name):
    lead_ins = [lead_in for lead_in in Prompts().lead_ins if language(lead_in) == name]
    assert len(lead_ins) >= (12 if name == "en" else 3)
    assert all(lead_in[-1] in ":：" and lead_in == lead_in.strip() for lead_in in lead_ins)
    for instruction in LED[name]:
        drawn = {Prompts().with_lead_in(instruction, random.Random(seed)) for seed in range(200)}
        space = "" if name in ("zh", "ja") else " "
        assert drawn == {f"{lead_in}{space}{instruction}" for lead_in in lead_ins}
        assert {Prompts().without_lead_in(text) for text in drawn} == {instruction}


def test_lead_ins_have_a_known_language():
    assert {language(lead_in) for lead_in in Prompts().lead_ins} == set(LED)
    assert all(names_text(lead_in) and not points_at_passage(lead_in) for lead_in in Prompts().lead_ins)


def test_lead_ins_are_whole_phrases():
    """Not a clause that needs a statement after it, nor the announcement of one."""
    for lead_in in Prompts().lead_ins:
        assert not lead_in.startswith(("According to", "As far as", "Here is something", "Look it up", "Think back"))


def test_one_request_uses_the_singular():
    one, four = (Prompts().request_instructions("TEXT", count) for count in (1, 4))
    assert "4 different requests" in four
    assert "one request" in one
    assert not re.search(r"\d|different|requests|numbered|\blist\b", one)


def test_several_requests_use_list_or_json():
    listed = Prompts().request_instructions("TEXT", 3)
    assert listed.endswith("comparing.\nWrite them as a numbered list, one request per line, and nothing else.")
    as_json = Prompts().request_instructions("TEXT", 3, as_json=True)
    assert as_json.endswith(
        "comparing.\nWrite them as a JSON list of 3 strings, one request per string, and nothing else."
    )
    assert [Prompts().may_ask_for_json(count) for count in (1, 2)] == [False, True]
    own = prompts_from_dict({"write_instruction": "{document} Ask! {form}", "as_json": "JSON: {count}."}, "file")
    assert own.may_ask_for_json(2)
    assert own.request_instructions("T", 2, as_json=True) == "T Ask! JSON: 2."
    assert not prompts_from_dict({"write_instruction": "{document} Ask!"}, "file").may_ask_for_json(2)


def test_own_plural_wording_applies_to_one():
    own = prompts_from_dict({"write_instruction": "{document} Write {count}."}, "file")
    assert own.request_instructions("TEXT", 1) == "TEXT Write 1."
    both = prompts_from_dict({"write_instruction": "{document} a", "write_one_instruction": "{document} b"}, "file")
    assert (both.request_instructions("T", 1), both.request_instructions("T", 2)) == ("T b", "T a")


@pytest.mark.parametrize(
    "instruction",
    [
        "यह किसने किया?",
        "1 + 1?",
        "Xanthippe?",
        "According to the passage, who ran?",
        "Going by the letters, who ran?",
        "What does the document say about the boat?",
        "Кто бежал, если верить тексту?",
        "文中谁跑了？",
    ],
)
def test_instructions_that_take_no_lead_in(instruction):
    assert Prompts().with_lead_in(instruction, random.Random(0)) == instruction
    assert Prompts(lead_ins=()).with_lead_in("Who ran?", random.Random(0)) == "Who ran?"


def test_other_lead_ins_follow_the_script():
    prompts = Prompts(lead_ins=("根据文本：", "Согласно тексту:"))
    assert prompts.with_lead_in("谁跑了？", random.Random(0)) == "根据文本：谁跑了？"
    assert prompts.with_lead_in("Кто бежал?", random.Random(0)) == "Согласно тексту: Кто бежал?"
    assert prompts.with_lead_in("Who ran?", random.Random(0)) == "Who ran?"
    assert prompts.without_lead_in("根据文本：谁跑了？") == "谁跑了？"
