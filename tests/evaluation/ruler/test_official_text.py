"""Our questions against the generators of the installed harness: for the same random draws, the same text."""

import json
import random
import re
from types import SimpleNamespace
from unittest import mock

import pytest

from nemo_longpo.evaluation.ruler import documents, listings, needles, official, recipe

pytestmark = pytest.mark.slow  # importing the harness's tasks takes ten seconds

SEED, LENGTH = 5, 4096
ESSAYS = " ".join(f"This is sentence {i}, which says little. Is it long? No!" for i in range(400))


class Told:
    """A tokenizer that tells a generator at its first question that the length is met, and starts the random numbers.

    So the generator settles on the second size that it tries, and every sample follows from the seed.
    """

    def __init__(self, tokens: int, calls_before: int = 0):
        self.tokens, self.calls_before = tokens, calls_before

    def __call__(self, text):
        self.calls_before -= 1
        if self.calls_before == -1:
            random.seed(SEED)
            return SimpleNamespace(input_ids=[0] * self.tokens)
        return SimpleNamespace(input_ids=[])


@pytest.fixture(scope="module")
def harness():
    with mock.patch("nltk.download"):
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, prepare_niah, qa_utils, vt_utils
    return SimpleNamespace(
        niah=niah_utils, prepare=prepare_niah, vt=vt_utils, cwe=cwe_utils, fwe=fwe_utils, qa=qa_utils
    )


@pytest.mark.parametrize("task", needles.NEEDLE_TASKS)
def test_needles(task, harness, monkeypatch):
    row = needles.NEEDLE_TASKS[task]
    haystacks = {"essay": re.sub(r"\s+", " ", ESSAYS).split(" ")}
    real = harness.prepare.get_haystack
    monkeypatch.setattr(
        harness.niah, "get_haystack", lambda type_haystack: haystacks.get(type_haystack) or real(type_haystack)
    )
    monkeypatch.setattr(harness.niah, "get_tokenizer", lambda _: Told(LENGTH - 128))
    monkeypatch.setattr(harness.niah, "download_dataset", lambda samples: next(iter(samples)))
    monkeypatch.setattr(harness.prepare, "cached_sent_tokenize", lambda text: re.split(r"(?<=[.!?])\s+", text))
    found = getattr(harness.niah, task)(max_seq_lengths=[LENGTH], pretrained="any")
    assert len(found) == 500
    maker = needles.NeedleMaker(row, official.official().needles, LENGTH, needles.essay_prose(ESSAYS))
    rng = random.Random(SEED)
    for sample in found:
        made = maker(1000 if row.haystack == "essay" else 50, rng)
        assert made == recipe.Made(sample["input"], sample["gen_prefix"], tuple(sample["outputs"]))


def test_word_pairs(harness):
    pairs = official.word_pairs()
    assert len(pairs) == len(harness.prepare.WORDS)
    assert all(pairs[i] == harness.prepare.WORDS[i] for i in range(0, len(pairs), 997))
    inside = [i for i, group in enumerate(pairs._groups) if len(group) > 1]
    assert inside, "no adjective begins another: this test holds less than it says"
    places = [pairs._starts[i] + step for i in inside for step in (0, 6000, 7000)]
    assert all(pairs[i] == harness.prepare.WORDS[i] for i in places)


@pytest.mark.parametrize("noises", [1, 20])
def test_variable_tracking(noises, harness, monkeypatch):
    """Few pieces of noise are cut at their full stops.

    Ten questions: among the next ten, the official generator calls a variable VAR, which ours does not.
    """
    monkeypatch.setattr(
        harness.vt, "np", SimpleNamespace(random=SimpleNamespace(randint=lambda a, b: random.randint(a, b - 1)))
    )
    words = official.official().chains
    random.seed(1)
    text, variables = harness.vt.generate_input_output(10, 1, 4, is_icl=True)
    example = listings.ChainMaker(words, letters=3)(10, random.Random(1))
    found = harness.vt.sys_vartrack_w_noise_random(
        Told(LENGTH - 30, calls_before=1),
        num_samples=10,
        max_seq_length=LENGTH,
        incremental=noises,
        icl_example={"input": text, "outputs": variables},
    )
    maker, rng = listings.ChainMaker(words, example=example), random.Random(SEED)
    for sample in found:
        made = maker(2 * noises, rng)
        assert made == recipe.Made(sample["input"], sample["gen_prefix"], tuple(sample["outputs"]))


@pytest.mark.parametrize("length", [1024, LENGTH])
def test_common_words(length, harness, monkeypatch):
    """The solved example stands in front, as in NVIDIA's generator; the harness hands it out beside the question."""
    monkeypatch.setattr(
        harness.cwe, "RNG", SimpleNamespace(shuffle=lambda listed: random.Random(recipe.OFFICIAL_SEED).shuffle(listed))
    )
    found = harness.cwe.sys_word_pair_random(50, length, tokenizer=Told(length - 120), incremental=20)
    maker, rng = listings.ListMaker(official.official().common_words, length), random.Random(SEED)
    for sample in found:
        made = maker(40, rng)
        prompt = f"{sample['input_example']}\n{sample['input']}"
        assert made == recipe.Made(prompt, sample["gen_prefix"], tuple(sample["outputs"]))


def test_frequent_words(harness):
    found = harness.fwe.sys_kwext(Told(LENGTH), LENGTH, num_samples=50)
    maker, rng = listings.CodeMaker(official.official().frequent_words, LENGTH), random.Random(SEED)
    for sample in found:
        made = maker(LENGTH // 6 - LENGTH // 32, rng)
        assert made == recipe.Made(sample["input"], sample["gen_prefix"], tuple(sample["outputs"]))


def squad(articles=4, paragraphs=8):
    return {
        "version": "v2.0",
        "data": [
            {
                "title": f"Article {a}",
                "paragraphs": [
                    {
                        "context": f"Paragraph {p} of article {a} is about {a * p} {{things}}.",
                        "qas": [
                            {
                                "question": f"What is paragraph {p} of article {a} about?",
                                "id": f"{a}-{p}",
                                "answers": [{"text": f"{a * p}", "answer_start": 3}, {"text": "things"}],
                                "is_impossible": False,
                            },
                            {"question": "What not?", "id": f"no {a}-{p}", "answers": [], "is_impossible": True},
                        ],
                    }
                    for p in range(paragraphs)
                ],
            }
            for a in range(articles)
        ],
    }


def hotpotqa(questions=12):
    return [
        {
            "_id": str(q),
            "question": f"Who is number {q}?",
            "answer": f"Name {q}",
            "context": [[f"Title {q}-{i}", [f"First {i}.", " Second."]] for i in range(4)],
        }
        for q in range(questions)
    ]


@pytest.mark.parametrize(("name", "content"), [("squad", squad()), ("hotpotqa", hotpotqa())])
def test_documents(name, content, harness, tmp_path, monkeypatch):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(harness.qa, "download_json", lambda url: json.loads(path.read_text()))
    asked, papers = getattr(harness.qa, f"read_{name}")(url=str(path))
    found = harness.qa.generate_samples(Told(LENGTH - 32), papers, asked, LENGTH, num_samples=12)
    library = getattr(documents, f"read_{name}")(path)
    assert len(library.asked) == len(asked)
    rng = random.Random(SEED)
    for number, sample in enumerate(found):
        made = documents.DocumentMaker(official.official().documents, library, number)(20, rng)
        assert made == recipe.Made(sample["input"], sample["gen_prefix"], tuple(sample["outputs"]))
