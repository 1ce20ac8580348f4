"""LongBench v2: the authors' rule for reading a letter, the parts of the prompt, categories, the middle cut."""

import json

import pytest
from support import benchmark_data
from support.evaluation_models import open_one, preparation
from support.tiny_models import save_tiny

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import longbench
from nemo_longpo.evaluation.questions import Question
from nemo_longpo.evaluation.suites import BENCHMARKS

ROW = BENCHMARKS["longbench_v2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_one(save_tiny(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return benchmark_data.write_long(tmp_path_factory.mktemp("data"), count=6)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("The correct answer is (B)", 1),
        ("The correct answer is (B) Lima.", 1),
        ("The correct answer is B", 1),
        ("**The correct answer is (B)**", 1),
        ("The correct answer is *B*", 1),
        ("Reasons.\nThe correct answer is (B).", 1),
        ("The correct answer is (A). The correct answer is (B).", 0),
        ("The correct answer is A, no: The correct answer is (B)", 1),  # with parentheses before without
        ("The correct answer is (E). The correct answer is B", 1),
        ("The correct answer is Bogota", 1),  # theirs does not look further than the letter
        ("The correct answer is b", 0),
        ("the correct answer is (B)", 0),
        ("The correct answer is: (B)", 0),
        ("B", 0),
        ("(B)", 0),
        ("", 0),
    ],
)
def test_letter_is_read_from_the_sentence_asked_for(written, expected):
    assert longbench.letter(written, Question(id="0", prompt="", answers=("B",))) == expected


def test_prompt_has_the_text_the_choices_and_how_to_answer(model, data):
    (task,) = longbench.build(ROW, preparation(model, data))
    for number, row in enumerate(task.task.eval_docs):
        book = benchmark_data.BOOK if number % 2 == 0 else benchmark_data.BOOK.replace("boat", "train")
        places = [benchmark_data.PLACES[(number + i) % 8] for i in range(4)]
        head, text, rest = row["prompt"].partition(f"<text>\n{book}\n</text>\n\n")
        assert text
        assert head.endswith("question below.\n\n")
        question, *choices, blank, how = rest.splitlines()
        assert question.endswith(f": Where from was day {number}?")
        assert choices == ["Choices:", *(f"({letter}) {place}" for letter, place in zip("ABCD", places, strict=True))]
        assert not blank
        # An answer in the words that are asked for is read.
        wanted = how.partition('"')[2].partition('"')[0].replace("insert answer here", "C")
        assert longbench.letter(wanted, Question(id="0", prompt="", answers=("C",))) == 1
    assert task.task.config.generation_kwargs["max_gen_toks"] == 128


def test_category_is_difficulty_and_length(model, data):
    (task,) = longbench.build(ROW, preparation(model, data))
    assert task.categories == {
        "66f0000": "easy, short",
        "66f0001": "hard, medium",
        "66f0002": "easy, long",
        "66f0003": "hard, short",
        "66f0004": "easy, medium",
        "66f0005": "hard, long",
    }


def test_middle_is_cut_and_counted(model, data):
    settings = preparation(model, data, max_length=640)
    (task,) = longbench.build(ROW, settings)
    assert task.shortened == 6
    for row in task.task.eval_docs:
        assert 500 <= settings.count_tokens(row["prompt"], "") <= 512
        assert "<text>" in row["prompt"]
        assert "</text>" in row["prompt"]


def test_only_the_first_questions_are_read(model, data):
    (task,) = longbench.build(ROW, preparation(model, data, samples=2))
    assert len(task.task.eval_docs) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "E"}, "row 2: field 'answer' should be one of A, B, C, D, not 'E'"),
        ({"difficulty": "medium"}, "row 2: field 'difficulty' should be one of easy, hard"),
        ({"length": 12}, "row 2: field 'length' should be one of short, medium, long"),
        ({"_id": "66f0000"}, "two questions have the id '66f0000'"),
    ],
)
def test_rows_that_are_not_as_published_are_named(model, data, tmp_path, change, words):
    rows = json.loads((data / "longbench_v2.json").read_text())
    (tmp_path / "longbench_v2.json").write_text(json.dumps([rows[0], rows[1] | change]))
    with pytest.raises(InputError, match=words):
        longbench.build(ROW, preparation(model, tmp_path))
