"""Answers that refuse, copy or loop are recognised, in many languages; others are not."""

import json

import pytest
from hypothesis import given, settings, strategies as st

from nemo_longpo.data_tools.quality.useless_answers import (
    compressed_share,
    declines,
    is_refusal,
    longest_copy,
    longest_loop,
    searchable,
)

DECLINING = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot answer this question.",
    "Sorry, I don't have access to the document.",
    "Unfortunately, I am unable to read the file.",
    "I apologize, but there is a problem.",
    "As an AI language model, I have no opinions.",
    "As a large language model I cannot know.",
    "Thank you for asking. I do not have enough information to say.",
    "Please provide the text that you want me to read.",
    "Lo siento, pero no puedo responder a eso.",
    "Désolé, mais je ne peux pas répondre à cette question.",
    "Es tut mir leid, aber ich kann diese Frage nicht beantworten.",
    "Desculpe, mas não posso responder.",
    "Mi dispiace, ma non posso aiutarti.",
    "Извините, но я не могу ответить на этот вопрос.",
    "К сожалению, не могу помочь.",
    "很抱歉，我无法回答这个问题。",
    "作为一个人工智能，我没有观点。",
    "申し訳ありませんが、お答えできません。",
    "죄송하지만 답변할 수 없습니다.",
    "آسف، لا أستطيع الإجابة.",
]
ABSENT = [
    "The text does not mention who repaired the clock.",
    "Unfortunately, the provided passage doesn't say why.",
    "Based on the given text, there is no mention of a clock.",
    "It is not stated in the document.",
    "El texto no menciona quién reparó el reloj.",
    "Le texte ne mentionne pas l'horloge.",
    "Der Text erwähnt die Uhr nicht.",
    "Leider enthält er nichts. Das Dokument gibt darüber keine Auskunft.",
    "O texto não menciona o relógio.",
    "Il testo non menziona l'orologio.",
    "В тексте не упоминается, кто починил часы.",
    "文中没有提到谁修好了钟。",
    "根据所给的信息，文章并未说明原因。",
    "この文章には時計についての記載はありません。",
    "이 글에는 시계에 대한 언급이 없습니다.",
    "لا يذكر النص من أصلح الساعة.",
]
ANSWERS = [
    "The sailor's daughter repaired it.",
    "He wrote: “I'm sorry, but I can't come to the harbour.”",
    "I'm sorry, said the captain, and left.",
    "She was sorry that I could not come.",
    "As an assistant to the captain, he kept the letters.",
    "The text mentions two clocks and a boat.",
    "The text does not mention his age, but he was at school in 1950, so he was about ten.",
    "Although the passage does not say why, the tide is the likely reason.",
    "The document describes what the crew did not mention.",
    "There is no evidence that he left before noon.",
    "No information was given to the crew before they left.",
    "El texto no menciona la edad, pero sí el año.",
    "他没有提到那封信，因为他已经烧掉了。",
    "Текст упоминает двое часов.",
    "Der Text nennt zwei Uhren.",
    "The letters are long. " * 8 + "I'm sorry, but I can't say more.",
]


@pytest.mark.parametrize("text", DECLINING)
def test_refusing_to_answer(text):
    assert declines(text)
    assert is_refusal(text)


@pytest.mark.parametrize("text", ABSENT)
def test_answer_reports_missing_text(text):
    assert is_refusal(text)
    assert not declines(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text):
    assert not is_refusal(text)


def test_only_the_beginning_counts():
    text = "The letters are long. " * 8 + "I'm sorry, but I can't say more."
    start = text.index("I'm")
    assert is_refusal(text, start + 1)
    assert not is_refusal(text, start - 1)


TEXT = "The old clock stood by the harbour, and nobody knew who had repaired it in the winter of 1984."


def test_stretches_of_the_source():
    source = searchable(TEXT)
    assert longest_copy(TEXT.upper(), source, 5) == 19
    assert longest_copy(f"It says: “{TEXT[4:34]}”, no more.", source, 5) == 6
    assert longest_copy(f"It says: “{TEXT[4:34]}”, no more.", source, 7) == 0
    assert longest_copy("The clock of the harbour was old.", source, 3) == 0
    assert longest_copy("old clock stood by the harb", source, 6) == 0  # no halves of words
    assert longest_copy("", source, 1) == 0


LETTERS = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@settings(deadline=None)
@given(LETTERS, LETTERS, st.integers(1, 4))
def test_longest_copy_is_the_longest(answer, source, shortest):
    words = answer.split()
    stretches = [words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    found = [len(stretch) for stretch in stretches if f" {' '.join(stretch)} " in f" {source} "]
    assert longest_copy(answer, searchable(source), shortest) == max([n for n in found if n >= shortest], default=0)


PROSE = "The captain wrote to his daughter about the old clock, the harbour and the boat that had left so early."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He went home. " * 20, 60),
        (f"{PROSE} " + "He went home. " * 5, 15),
        (f"{PROSE} " + "He went home. " * 5 + "He we", 16),  # cut in the middle of a round
        ("He went home. " * 5 + PROSE, 15),  # and out of the loop again
        (f"{PROSE} " * 4, 80),
        ("他说船很好。" * 6, 30),
        ("no " * 7, 7),
        ("He went home. " * 3, 0),
        (f"{PROSE} {PROSE}", 0),
        ("0, 0, 0, 0, 0, 0, 0, 0", 0),
        ("1 2 1 2 1 2 1 2", 0),
        (", ".join(map(str, range(50))), 0),
        ("", 0),
        ("one", 0),
    ],
)
def test_loops(text, expected):
    assert longest_loop(text) == expected


def test_compressed_size():
    assert compressed_share(PROSE * 3) == 1.0  # too short to tell
    numbered = "\n".join(f"{number}. The boat is red and the clock is old." for number in range(40))
    assert longest_loop(numbered) == 0
    assert compressed_share(numbered) < 0.1
    records = [{"name": f"person {n}", "age": 20 + n % 30, "city": ["Rome", "Oslo", "Lima"][n % 3]} for n in range(40)]
    table = "\n".join(f"| {n} | {n * n} | {n**3} |" for n in range(60))
    assert all(compressed_share(text) > 0.1 for text in (json.dumps(records, indent=1), table))
