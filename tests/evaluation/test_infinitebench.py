"""InfiniteBench: the authors' scores by example, the harness's words, the middle cut and counted, rows as published."""

import json
from pathlib import Path

import pytest
from support import benchmark_data
from support.evaluation_models import engine_lm, open_one, preparation
from support.tiny_models import save_tiny

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import infinitebench, prompts
from nemo_longpo.evaluation.questions import Question
from nemo_longpo.evaluation.suites import BENCHMARKS

HARNESS = {
    "infinitebench_sum": "infinitebench_longbook_sum_en",
    "infinitebench_qa": "infinitebench_longbook_qa_en",
    "infinitebench_mc": "infinitebench_longbook_choice_en",
}


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request, tmp_path_factory):
    return open_one(save_tiny(tmp_path_factory.mktemp("model"), request.param))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return benchmark_data.write_long(tmp_path_factory.mktemp("data"))


def question(*answers):
    return Question(id="0", prompt="", answers=answers)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("B", 1),
        ("B. Lima, because A is far", 1),
        ("Because it is D", 1),  # begins with B
        ("A. Because B is wrong", 0),
        ("Lima", 1),
        ("Cairo", 0),  # begins with C
        ("lima", 0),
        ("The answer is: B", 1),
        ("The answer is B", 1),
        ("The answer is: Lima", 1),
        ("The answer is Lima and A", 1),
        ("The answer:B", 0),  # one character after the phrase is left out
        ("The Answer is B", 1),  # not the phrase, but a word that is a letter
        ("The answer is", 0),
        ("I think the option is D, not B", 0),
        ("I think it is 'B', not D", 1),
        ("I think it is D, not B", 0),
        ("I think it is BC or B", 0),
        ("no letter", 0),
        ("", 0),
    ],
)
def test_choice_by_the_first_letter(written, expected):
    assert infinitebench.choice(written, question("Lima", "B")) == expected


def test_choice_whose_text_begins_with_another_letter_is_read_as_that_letter():
    assert infinitebench.choice("Delhi", question("Delhi", "B")) == 0
    assert infinitebench.choice("Delhi", question("Delhi", "D")) == 1


@pytest.mark.parametrize(
    ("written", "answers", "expected"),
    [
        ("Paris", ["paris"], 1),
        ("In Paris, France", ["Paris"], 0.5),
        ("The Paris!", ["paris"], 1),
        ("a.k.a. Bob", ["aka bob"], 1),  # punctuation goes before articles
        ("Bob Bob", ["Bob"], 2 / 3),
        ("Oslo", ["Lima", "Oslo harbour", "Oslo"], 1),
        ("Oslo", ["Lima", "Oslo harbour"], 2 / 3),
        ("Lima", ["Oslo"], 0),
        ("", ["Oslo"], 0),
        ("the", ["the"], 0),
    ],
)
def test_f1_of_words(written, answers, expected):
    assert infinitebench.qa_f1(written, question(*answers)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "answers", "expected"),
    [
        ("boats carry lamps", ["boats carry lamps"], 1),
        ("the boats", ["the boat"], 0.5),  # no stemming
        ("two three\nzero one", ["zero one\ntwo three"], 1),  # lines are sentences, in any order
        ("one\nzero", ["zero one"], 1),
        ("one zero", ["zero one"], 0.5),
        ("zero one", ["four five", "zero one"], 1),  # the best reference
        ("zero four five six", ["zero one"], 1 / 3),
        ("", ["zero"], 0),
    ],
)
def test_rouge_of_lines(written, answers, expected):
    assert infinitebench.summary(written, question(*answers)) == pytest.approx(expected)


@pytest.mark.parametrize("name", HARNESS)
def test_prompts_are_the_words_of_the_harness(model, data, name):
    """The harness's own task on the same rows."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    file = data / BENCHMARKS[name].files[0]
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / "infinitebench" / f"{HARNESS[name]}.yaml")
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {config["test_split"]: str(file)}}}
    theirs = ConfigurableTask(config=config)
    expected = [theirs.fewshot_context(row, num_fewshot=0) for row in theirs.eval_docs]
    (task,) = infinitebench.build(BENCHMARKS[name], preparation(model, data))
    assert [task.task.doc_to_text(row) for row in task.task.eval_docs] == expected
    assert task.shortened == 0
    limits = task.task.config.generation_kwargs
    assert limits["max_gen_toks"] == theirs.config.generation_kwargs["max_gen_toks"]
    assert limits["until"] == []


def test_questions_on_one_book_share_its_name(model, data, monkeypatch):
    made = []
    monkeypatch.setattr(infinitebench.questions, "question_task", lambda _, asked, *args, **named: made.extend(asked))
    infinitebench.build(BENCHMARKS["infinitebench_qa"], preparation(model, data))
    names = [question.document for question in made]
    assert names[0] == names[1] != names[2] == names[3]
    assert all(names)


@pytest.mark.parametrize("length", [300, 301, 777])
def test_middle_is_cut_to_the_length_and_counted(model, data, length):
    """Half of the tokens that fit stay in front, half behind; the text of the halves may need some tokens less."""
    benchmark = BENCHMARKS["infinitebench_qa"]
    (whole,) = infinitebench.build(benchmark, preparation(model, data))
    full = [row["prompt"] for row in whole.task.eval_docs]
    settings = preparation(model, data, max_length=length)
    (task,) = infinitebench.build(benchmark, settings)
    most = length - benchmark.max_new_tokens
    assert task.shortened == len(full) == 4
    for before, row in zip(full, task.task.eval_docs, strict=True):
        text, tokens = row["prompt"], settings.count_tokens(row["prompt"], "")
        assert most - 12 <= tokens <= most
        ids = model.tokenizer(before, add_special_tokens=False).input_ids
        cut = row["shortened_tokens"]
        half = (len(ids) - cut) // 2
        assert text == model.tokenizer.decode(ids[:half] + ids[-half:])
        assert before.startswith(text[:100])
        assert before.endswith(text[-100:])
        assert cut >= len(ids) - most


def prompts_of(task, model, tmp_path, too_long, max_length):
    return prompts.prompts_of(
        task,
        engine_lm(model, tmp_path),
        max_length,
        chat_template=False,
        system_prompt=None,
        samples=None,
        seed=0,
        too_long=too_long,
    )


def test_without_shortening_long_questions_are_refused_or_dropped(model, data, tmp_path):
    benchmark = BENCHMARKS["infinitebench_qa"]
    settings = preparation(model, data, max_length=600, shorten=False)
    (task,) = infinitebench.build(benchmark, settings)
    assert task.shortened == 0
    with pytest.raises(InputError, match=r"infinitebench_qa: question 0 takes .* and the model reads 600"):
        prompts_of(task, model, tmp_path, "refuse", 600)
    lengths = [settings.count_tokens(row["prompt"], "") + benchmark.max_new_tokens for row in task.task.eval_docs]
    most = sorted(lengths)[1]
    made = prompts_of(task, model, tmp_path, "drop", most)
    assert made.dropped == sum(length > most for length in lengths) > 0
    assert made.longest_prompt == most - benchmark.max_new_tokens
    (short,) = infinitebench.build(benchmark, preparation(model, data, max_length=600))
    assert prompts_of(short, model, tmp_path, "official", 600).dropped == 0


def test_model_shorter_than_an_answer_is_refused(model, data):
    with pytest.raises(InputError, match="answers take 1,200 tokens"):
        infinitebench.build(BENCHMARKS["infinitebench_sum"], preparation(model, data, max_length=1201))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("infinitebench_qa", {"answer": []}, "row 2: field 'answer' should be a text, or a list of texts"),
        ("infinitebench_qa", {"context": None}, "row 2: field 'context' should be text"),
        ("infinitebench_qa", {"id": 0}, "two questions have the id '0'"),
        ("infinitebench_mc", {"options": ["Oslo"] * 3}, "row 2: field 'options' should be four texts"),
        ("infinitebench_mc", {"answer": ["Atlantis"]}, "row 2: field 'options' should be four texts, and 'answer' one"),
    ],
)
def test_rows_that_are_not_as_published_are_named(model, data, tmp_path, name, change, words):
    file = BENCHMARKS[name].files[0]
    rows = [json.loads(line) for line in (data / file).read_text().splitlines()]
    benchmark_data.write_rows(tmp_path / file, [rows[0], rows[1] | change])
    with pytest.raises(InputError, match=words):
        infinitebench.build(BENCHMARKS[name], preparation(model, tmp_path))


def test_empty_and_missing_files_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="which does not exist"):
        infinitebench.build(BENCHMARKS["infinitebench_qa"], preparation(model, tmp_path))
    (tmp_path / "longbook_qa_eng.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"there is no question in longbook_qa_eng\.jsonl"):
        infinitebench.build(BENCHMARKS["infinitebench_qa"], preparation(model, tmp_path))
