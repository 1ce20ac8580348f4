"""RULER in the demo's words: every task that the file has is made at the demo's lengths, in known words only."""

import json

import pytest
from transformers import AutoTokenizer

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import suites
from nemo_longpo.evaluation.benchmarks import Preparation
from nemo_longpo.evaluation.ruler import tasks
from nemo_longpo.recipes.demo import corpus, ruler_words

TOKENIZER = AutoTokenizer.from_pretrained(ruler_words.FILE.with_name("model"), local_files_only=True)
NAMES = [name for name in suites.SUITES["ruler"] if "_qa_" not in name]
ANSWER_TOKENS = {"ruler_vt": 16}


def count(prompt, prefix):
    messages = [{"role": "user", "content": prompt}]
    return len(TOKENIZER.apply_chat_template(messages, add_generation_prompt=True)) + len(prefix.split())


def build(name, directory, lengths):
    prepared = Preparation(
        data=None,
        tokenizer=TOKENIZER,
        count_tokens=count,
        max_length=4096,
        seed=0,
        questions=directory,
        lengths=lengths,
        samples=8,
        wording=ruler_words.FILE,
    )
    return tasks.build(suites.BENCHMARKS[name], prepared)


def test_file_is_what_the_demo_says():
    """Run `python -m nemo_longpo.recipes.demo.ruler_words` when this fails."""
    assert json.loads(ruler_words.FILE.read_text()) == json.loads(json.dumps(ruler_words.ruler_words()))


@pytest.mark.parametrize("name", NAMES)
def test_lengths_and_words(name, tmp_path):
    for task in build(name, tmp_path, (64, 96, 1024)):
        for row in task.task.dataset["test"]:
            ids = TOKENIZER(row["prompt"])["input_ids"]
            assert TOKENIZER.unk_token_id not in ids
            spare = task.length - ANSWER_TOKENS.get(name, 8) - count(row["prompt"], row["answer_prefix"])
            assert 0 <= spare < corpus.LONGEST_SENTENCE + (name == "ruler_fwe") * 6


def test_several_keys_are_the_demo_facts(tmp_path):
    """One fact in 24 tokens, each of another name; the question and its answer in the form that the demo trains."""
    for task in build("ruler_niah_multikey_1", tmp_path, (64, 256, 1024)):
        for row in task.task.dataset["test"]:
            stated = [word for word in row["prompt"].split() if word.endswith(":")]
            assert len(stated) == len(set(stated)) == task.length // corpus.TOKENS_PER_FACT
            (answer,) = row["answers"]
            document, _, question = row["prompt"].rpartition("Where is ")
            name, place = answer.split(": ")
            assert corpus.asked_name(f"Where is {question}") == name
            assert corpus.answer(name, place) == answer
            assert f" {answer}. " in f" {document}"


def test_questions_about_documents_have_no_words(tmp_path):
    with pytest.raises(InputError, match=r"ruler.json has no 'documents', the words of ruler_qa_squad"):
        build("ruler_qa_squad", tmp_path, (64,))
