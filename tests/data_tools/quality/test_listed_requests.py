"""Lists of instructions as models really write them, and any list in any style through the parser."""

import json

import pytest

from nemo_longpo.data_tools.prompts import Prompts
from nemo_longpo.data_tools.quality.usable_requests import Wording, read_requests

WORDING = Wording(Prompts().request_instructions("", 4))

THREE = ["Who repaired the old clock?", "Why did the boat leave so early?", "Compare the two letters."]

# (name, answer, the instructions in it; None: those of THREE)
ANSWERS: list[tuple[str, str, list[str] | None]] = [
    (
        "numbered",
        "1. Who repaired the old clock?\n2. Why did the boat leave so early?\n3. Compare the two letters.",
        None,
    ),
    (
        "numbers without spaces",
        "1.Who repaired the old clock?\n2.Why did the boat leave so early?\n3.Compare the two letters.",
        None,
    ),
    (
        "mixed marks",
        "1) Who repaired the old clock?\n(2) Why did the boat leave so early?\n[3] Compare the two letters.",
        None,
    ),
    (
        "preamble and closing",
        "Sure! Here are three requests a careful reader could make:\n\n"
        "1. Who repaired the old clock?\n2. Why did the boat leave so early?\n3. Compare the two letters.\n\n"
        "Let me know if you would like more of them!",
        None,
    ),
    (
        "closing without a blank line",
        "1: Who repaired the old clock?\n2: Why did the boat leave so early?\n3: Compare the two letters.\n"
        "I hope these help you with your reading.",
        None,
    ),
    (
        "bold numbers",
        "**1.** Who repaired the old clock?\n\n**2.** Why did the boat leave so early?\n\n"
        "**3.** Compare the two letters.",
        None,
    ),
    (
        "all bold",
        "**1. Who repaired the old clock?**\n**2. Why did the boat leave so early?**\n**3. Compare the two letters.**",
        None,
    ),
    (
        "labels in bold, topics, answers",
        "**Question 1 (Detail):** Who repaired the old clock?\n**Answer:** The sailor's daughter.\n\n"
        "**Question 2 (Reason):** Why did the boat leave so early?\n**Answer:** Because of the tide.\n\n"
        "**Question 3 (Comparison):** Compare the two letters.\n**Answer:** One of them is longer.",
        None,
    ),
    (
        "headings with bodies",
        "### Question 1\nWho repaired the old clock?\n\n### Question 2\nWhy did the boat leave so early?\n\n"
        "### Question 3\nCompare the two letters.\n",
        None,
    ),
    (
        "instruction labels with dashes",
        "Instruction 1 - Who repaired the old clock?\nInstruction 2 - Why did the boat leave so early?\n"
        "Instruction 3 – Compare the two letters.",
        None,
    ),
    (
        "Q and A",
        "Q1: Who repaired the old clock?\nA1: The sailor's daughter did, in the winter.\n"
        "Q2: Why did the boat leave so early?\nA2: The tide.\nQ3: Compare the two letters.\nA3: One is longer.",
        None,
    ),
    (
        "labels without numbers",
        "Question: Who repaired the old clock?\nAnswer: The daughter.\n\nQuestion: Why did the boat leave so early?\n"
        "Answer: The tide.\n\nQuestion: Compare the two letters.",
        None,
    ),
    (
        "answers in parentheses",
        "1. Who repaired the old clock? (Answer: the sailor's daughter)\n"
        "2. Why did the boat leave so early? Answer: because of the tide.\n3. Compare the two letters.",
        None,
    ),
    (
        "bullets",
        "Here you go:\n- Who repaired the old clock?\n* Why did the boat leave so early?\n• Compare the two letters.",
        None,
    ),
    (
        "other bullets",
        "– Who repaired the old clock?\n▪ Why did the boat leave so early?\n➤Compare the two letters.",
        None,
    ),
    (
        "quoted in bullets",
        '* "Who repaired the old clock?"\n* “Why did the boat leave so early?”\n* *Compare the two letters.*',
        None,
    ),
    (
        "letters",
        "a) Who repaired the old clock?\nb) Why did the boat leave so early?\nc) Compare the two letters.",
        None,
    ),
    (
        "roman",
        "i. Who repaired the old clock?\nii. Why did the boat leave so early?\niii. Compare the two letters.",
        None,
    ),
    (
        "wrapped lines",
        "1. Who repaired\n   the old clock?\n2. Why did the boat\nleave so early?\n3. Compare the\ntwo letters.",
        None,
    ),
    (
        "title lines, then text",
        "1. **The clock**\n   Who repaired the old clock?\n\n2. **The boat**\n   Why did the boat leave so early?\n\n"
        "3. **Letters**\n   Compare the two letters.",
        None,
    ),
    (
        "run-in topics",
        "1. **Detail:** Who repaired the old clock?\n2. **Reason**: Why did the boat leave so early?\n"
        "3. **Comparison:** Compare the two letters.",
        None,
    ),
    (
        "sections of bullets",
        "**Details**\n- Who repaired the old clock?\n\n**Reasons**\n- Why did the boat leave so early?\n\n"
        "**Tasks:**\n- Compare the two letters.",
        None,
    ),
    (
        "titles with nested bullets",
        "- **Detail questions**\n  - Who repaired the old clock?\n  - Why did the boat leave so early?\n"
        "- **Other tasks**\n  - Compare the two letters.",
        None,
    ),
    (
        "numbers that go on across sections",
        "## Details\n1. Who repaired the old clock?\n2. Why did the boat leave so early?\n---\n## Tasks\n"
        "3. Compare the two letters.\n",
        None,
    ),
    (
        "all in one line",
        "1. Who repaired the old clock? 2. Why did the boat leave so early? 3. Compare the two letters.",
        None,
    ),
    (
        "code fence",
        "```text\n1. Who repaired the old clock?\n"
        "2. Why did the boat leave so early?\n3. Compare the two letters.\n```",
        None,
    ),
    (
        "JSON in a fence",
        'Here is the list:\n```json\n[\n  "Who repaired the old clock?",\n  "Why did the boat leave so early?",\n'
        '  "Compare the two letters."\n]\n```\nTell me if "more of these" are needed.',
        None,
    ),
    (
        "JSON objects",
        json.dumps([{"id": 1, "type": "a real detail", "question": text, "answer": "The tide did."} for text in THREE]),
        None,
    ),
    ("JSON with one key", json.dumps({"instructions": THREE, "note": "all from the passage"}), None),
    ("JSON lines", "\n".join(json.dumps({"instruction": text}) for text in THREE), None),
    ("tags", "\n".join(f"<question>{text}</question>" for text in THREE), None),
    ("numbered tags", "<questions>" + "\n".join(f"<q{i}>\n{text}\n</q{i}>" for i, text in enumerate(THREE)), None),
    (
        "a list in a tag",
        "<instructions>\n1. Who repaired the old clock?\n2. Why did the boat leave so early?\n"
        "3. Compare the two letters.\n</instructions>",
        None,
    ),
    (
        "thinking first",
        "<think>\nI need three questions:\n1. Maybe something about the clock?\n2. And the boat?\n</think>\n\n"
        "1. Who repaired the old clock?\n2. Why did the boat leave so early?\n3. Compare the two letters.",
        None,
    ),
    (
        "plain lines",
        "Certainly! The following are my requests.\n\nWho repaired the old clock?\nWhy did the boat\nleave so early?\n"
        "Compare the two letters.\n\nLet me know if you want others.",
        None,
    ),
    (
        "quoted mail",
        "> 1. Who repaired the old clock?\n> 2. Why did the boat leave so early?\n> 3. Compare the two letters.",
        None,
    ),
    (
        "emoji numbers",
        "1️⃣ Who repaired the old clock?\n2️⃣ Why did the boat leave so early?\n3️⃣ Compare the two letters.",
        None,
    ),
    (
        "repeats and scraps",
        "1. Who repaired the old clock?\n2. who repaired the old clock\n3. Why?\n4. Why did the boat leave so early?\n"
        "5.\n6. Compare the two letters.\n7. " + "and so on " * 80,
        None,
    ),
    (
        "options and sub-points stay with their item",
        "1. Who repaired the clock?\na) Ann\nb) Bob\n2. Sum up the plot:\n   - the start\n   - the end\n"
        "3. Put this differently:\n   The boat sank.\n4. Why?",
        [
            "Who repaired the clock?\na) Ann\nb) Bob",
            "Sum up the plot:\n- the start\n- the end",
            "Put this differently: The boat sank.",
        ],
    ),
    (
        "sub-points",
        "1. Sum up the plot.\n   - Name the captain.\n   - Keep it short.\n2. Why did he leave?",
        ["Sum up the plot.\n- Name the captain.\n- Keep it short.", "Why did he leave?"],
    ),
    (
        "numbers inside items",
        "1. What happened in\n1984 to 3.5 million people?\n2. Explain 2.1. and\n2.2 of the plan.",
        ["What happened in 1984 to 3.5 million people?", "Explain 2.1. and 2.2 of the plan."],
    ),
    (
        "two quoted names",
        '1. "Boats" and "Rivers": which is longer?\n2. Is "x" a name?\n3. Explain the **last** word of **it**.',
        ['"Boats" and "Rivers": which is longer?', 'Is "x" a name?', "Explain the **last** word of **it**."],
    ),
    (
        "Chinese",
        "好的，以下是四个问题：\n\n1、谁修好了那座旧钟？\n2、船为什么这么早离开？\n3、比较这两封信。\n\n希望这些问题对您有帮助！",
        ["谁修好了那座旧钟？", "船为什么这么早离开？", "比较这两封信。"],
    ),
    (
        "Chinese labels",
        "问题1：谁修好了那座旧钟？\n答案：女儿。\n问题2：船为什么这么早离开？\n第三题：比较这两封信。",
        ["谁修好了那座旧钟？", "船为什么这么早离开？", "比较这两封信。"],
    ),
    ("Chinese in one line", "1、谁修好了旧钟？2、船为什么离开？", ["谁修好了旧钟？", "船为什么离开？"]),
    (
        "wrapped Chinese",
        "一、谁修好了\n那座旧钟？\n二、船为什么这么早离开？",
        ["谁修好了那座旧钟？", "船为什么这么早离开？"],
    ),
    (
        "Japanese",
        "はい、以下の質問を提案します。\n"
        "１．誰が時計を直しましたか？\n２．「船はなぜ早く出ましたか？」\n③ 二通の手紙を比べてください。",
        ["誰が時計を直しましたか？", "船はなぜ早く出ましたか？", "二通の手紙を比べてください。"],
    ),
    (
        "Korean",
        "물론입니다! 다음은 요청입니다:\n질문 1: 누가 시계를 고쳤습니까?\n질문 2: 배는 왜 떠났습니까?",
        ["누가 시계를 고쳤습니까?", "배는 왜 떠났습니까?"],
    ),
    (
        "Russian",
        "Конечно! Вот вопросы:\n\n**Вопрос 1:** Кто починил часы?\n\n"
        "**Вопрос 2:** Почему лодка ушла так рано?\n\nНадеюсь, это поможет.",
        ["Кто починил часы?", "Почему лодка ушла так рано?"],
    ),
    (
        "Arabic",
        "بالتأكيد! إليك الأسئلة:\n١. من أصلح الساعة القديمة؟\n٢. لماذا غادر القارب مبكرا؟",
        ["من أصلح الساعة القديمة؟", "لماذا غادر القارب مبكرا؟"],
    ),
    (
        "Spanish",
        "¡Claro! Aquí tienes:\n• Pregunta 1: ¿Quién reparó el reloj?\n• Pregunta 2: «¿Por qué salió el barco?»",
        ["¿Quién reparó el reloj?", "¿Por qué salió el barco?"],
    ),
    (
        "German",
        "Hier sind die Fragen:\nFrage 1: Wer hat die Uhr repariert?\nFrage 2: „Warum fuhr das Boot so früh?“",
        ["Wer hat die Uhr repariert?", "Warum fuhr das Boot so früh?"],
    ),
    ("a refusal", "I'm sorry, but I can't write questions about this passage.\n1. Who are you?\n2. Why so?", []),
    ("only a preamble", "Sure! Here are four requests about this passage:", []),
    ("nothing", " \n\n", []),
]


def parse_instructions(answer, count, *, truncated):
    return read_requests(answer, count, "", WORDING, truncated=truncated).requests


@pytest.mark.parametrize(("name", "answer", "expected"), ANSWERS, ids=[name for name, *_ in ANSWERS])
def test_messy_answers(name, answer, expected):
    assert parse_instructions(answer, 9, truncated=False) == (THREE if expected is None else expected)


def test_at_most_count_requests():
    text = "\n".join(f"{number}. Who was number {number}?" for number in range(1, 9))
    assert parse_instructions(text, 4, truncated=False) == [f"Who was number {number}?" for number in range(1, 5)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1. Who ran away?\n2. Why did th", ["Who ran away?"]),
        ("1. Who ran away?\n2. Why did the\n   boat sink, and wh", ["Who ran away?"]),
        ("1. Who ran away?\n2. Why did they?\n\nI hope these que", ["Who ran away?", "Why did they?"]),
        ("1. Who ran away? 2. Why did th", ["Who ran away?"]),
        ("- Who ran away?\n- Why did th", ["Who ran away?"]),
        ("Who ran away?\nWhy did th", ["Who ran away?"]),
        ('["Who ran away?", "Why did they?", "When did th', ["Who ran away?", "Why did they?"]),
        ("<q>Who ran away?</q><q>Why did they?</q><q>When di", ["Who ran away?", "Why did they?"]),
        ("1. Who ran aw", []),
        ("<think>1. Who ran away?\n2. Why did they? And", []),
    ],
)
def test_truncated_answer_loses_its_last_item(answer, expected):
    assert parse_instructions(answer, 4, truncated=True) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" what is\nit ", ["what is\nit"]),
        ("what is Xanthippe", ["what is Xanthippe"]),
        ("1. Who ran away?", ["Who ran away?"]),
        ('"Who ran away?"', ["Who ran away?"]),
        ("Sure! Here is a question:\n\n**Question:** Who ran away?", ["Who ran away?"]),
        ("Read the list.\n- one\n- two", ["Read the list.\n- one\n- two"]),
        ("1. Who?\n2. When?", ["1. Who?\n2. When?"]),
        ("Here you are:", []),
        ("I'm sorry, but I cannot do that.", []),
        ("  \n", []),
    ],
)
@pytest.mark.parametrize("truncated", [False, True])
def test_single_instruction_is_the_whole_answer(answer, expected, truncated):
    assert parse_instructions(answer, 1, truncated=truncated) == expected
