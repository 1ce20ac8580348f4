"""RULER's tasks as built: their lengths, their seeds, what is kept on the disk, what is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st
from support.tiny_models import tiny_tokenizer
from transformers import AutoTokenizer

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation import suites
from nemo_longpo.evaluation.benchmarks import Preparation
from nemo_longpo.evaluation.ruler import documents, listings, needles, official, recipe, tasks

ESSAYS = " ".join(f"Sentence {i} says that it rains. Does it? It does, Mr. Smith!" for i in range(300))
# Tokens that one more unit adds, at most: a document, a line of needles with UUIDs, a sentence of noise, a word.
UNIT = {
    "qa_squad": 150,
    "qa_hotpot": 150,
    "vt": 90,
    "niah_single_1": 90,
    "niah_multikey_2": 90,
    "niah_multikey_3": 120,
    "cwe": 75,
    "fwe": 150,
}
WORD = 25
LENGTH = 8192
SLOW = pytest.mark.slow
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    (directory / "PaulGrahamEssays.json").write_text(json.dumps({"text": ESSAYS}))
    articles = [
        {
            "paragraphs": [
                {
                    "context": f"Paragraph {p} of article {a} says: {a * p}.",
                    "qas": [{"question": f"What says {p} of {a}?", "answers": [{"text": f"{a * p}"}]}],
                }
                for p in range(5)
            ]
        }
        for a in range(6)
    ]
    (directory / "squad.json").write_text(json.dumps({"data": articles}))
    rows = [
        {"question": f"Who is {q}?", "answer": f"Name {q}", "context": [[f"T{q}-{i}", ["A.", " B."]] for i in range(3)]}
        for q in range(8)
    ]
    (directory / "hotpotqa.json").write_text(json.dumps(rows))
    return directory


class Counting:
    """Counts tokens as `longpo eval` does, and how many it counted."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls, self.tokens = tokenizer, 0, 0

    def __call__(self, prompt, prefix):
        messages = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + prefix
        count = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        self.calls, self.tokens = self.calls + 1, self.tokens + count
        return count


def preparation(data, tmp_path, style="qwen2.5", **changes):
    tokenizer = tiny_tokenizer(style)
    settings = {
        "data": data,
        "tokenizer": tokenizer,
        "count_tokens": Counting(tokenizer),
        "max_length": 1 << 20,
        "seed": 0,
        "questions": tmp_path / "questions",
        "samples": 4,
        "lengths": (4096,),
    }
    return Preparation(**(settings | changes))


def build(name, prepared):
    return tasks.build(suites.BENCHMARKS[f"ruler_{name}"], prepared)


def rows_of(task):
    return list(task.task.dataset["test"])


@pytest.mark.parametrize("style", ["qwen2.5", *(pytest.param(s, marks=SLOW) for s in ("llama-3", "mistral-v0.3"))])
@pytest.mark.parametrize("name", [row.removeprefix("ruler_") for row in suites.SUITES["ruler"]])
@pytest.mark.slow
def test_fills_the_length(name, style, data, tmp_path):
    """One unit more would be too long; the answers are in the text."""
    prepared = preparation(data, tmp_path, style, samples=2, lengths=(LENGTH,))
    benchmark = suites.BENCHMARKS[f"ruler_{name}"]
    (task,) = build(name, prepared)
    assert task.length == LENGTH
    for row in rows_of(task):
        spare = LENGTH - benchmark.max_new_tokens - prepared.count_tokens(row["prompt"], row["answer_prefix"])
        assert 0 <= spare < UNIT.get(name, WORD)
        assert all(answer in row["prompt"] for answer in row["answers"]) or name == "qa_hotpot"


@SLOW
@pytest.mark.parametrize("name", ["niah_multikey_1", "niah_multikey_2", "vt", "cwe", "fwe", "qa_squad"])
def test_largest_size_by_trying_all(name, data, tmp_path):
    """What is built is what the largest size gives that fits, found by making every size."""
    prepared = preparation(data, tmp_path, samples=1, lengths=(2000 if name != "cwe" else 3500,))
    builder = tasks._Builder(suites.BENCHMARKS[f"ruler_{name}"], prepared, official.official())
    length = prepared.lengths[0]
    task = builder._task(length)
    (row,) = rows_of(build(name, prepared)[0])
    maker, prompts = task.maker(0), []
    for size in range(maker.smallest, 10**6):
        made = maker(size, tasks.Random(f"0 {name} {length} 0"))
        if prepared.count_tokens(made.prompt, made.answer_prefix) > length - task.max_new_tokens:
            break
        prompts.append(made.prompt)
    assert row["prompt"] in prompts
    assert prepared.count_tokens(prompts[-1], row["answer_prefix"]) - prepared.count_tokens(
        row["prompt"], row["answer_prefix"]
    ) in (0, 1)


@pytest.mark.parametrize("name", ["niah_multikey_3", "vt"])
def test_order_changes_nothing(name, data, tmp_path):
    """A length has its own seed, whatever is made before it, and a question its own, however many are made."""
    alone = build(name, preparation(data, tmp_path / "a", lengths=(2048,), samples=2))
    after = build(name, preparation(data, tmp_path / "b", lengths=(1500, 2048), samples=4))
    assert rows_of(after[1])[:2] == rows_of(alone[0])
    other = build(name, preparation(data, tmp_path / "c", lengths=(2048,), samples=2, seed=1))
    assert rows_of(other[0]) != rows_of(alone[0])
    assert len({row["prompt"] for row in rows_of(after[1])}) == 4


def test_made_once(data, tmp_path):
    """Read again, they cost the two counts that tell the chat template; a changed source or seed makes new ones."""
    first = preparation(data, tmp_path)
    made = rows_of(build("niah_single_2", first)[0])
    again = preparation(data, tmp_path)
    assert rows_of(build("niah_single_2", again)[0]) == made
    assert again.count_tokens.calls == 2
    (place,) = (tmp_path / "questions" / "ruler_niah_single_2").iterdir()
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["length"] == 4096
    assert manifest["samples"] == 4
    assert len(manifest["sources"]["PaulGrahamEssays.json"]) == 64
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "PaulGrahamEssays.json").write_text(json.dumps({"text": f"New. {ESSAYS}"}))
    for prepared in (
        preparation(changed, tmp_path),
        preparation(data, tmp_path, style="llama-3"),
        preparation(data, tmp_path, seed=3),
        preparation(data, tmp_path, samples=3),
    ):
        build("niah_single_2", prepared)
        assert prepared.count_tokens.calls > 4
    assert len(list((tmp_path / "questions" / "ruler_niah_single_2").iterdir())) == 5


def test_other_tokenizer_makes_new_ones(data, tmp_path):
    """Also one that counts the same, as far as the manifest's example goes."""
    build("niah_single_1", preparation(data, tmp_path))
    other = replace(preparation(data, tmp_path), tokenizer=tiny_tokenizer("llama-3"))
    build("niah_single_1", other)
    assert other.count_tokens.calls > 4


@pytest.mark.slow
def test_few_long_questions_give_their_place(data, tmp_path, capsys):
    """One question of forty that needs a document beyond the length is passed over, and said; of four, it is not."""
    content = json.loads((data / "squad.json").read_text())
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]] * 2
    long = {"context": "Rain. " * 2000, "qas": [{"question": "What falls?", "answers": [{"text": "Rain"}]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraphs[0], long, *paragraphs]}]}))
    for _ in range(2):  # made, and read
        (task,) = build("qa_squad", preparation(tmp_path, tmp_path, samples=40, lengths=(1500,)))
        assert "1 of the first 41 questions take more" in capsys.readouterr().err
    assert [row["id"] for row in rows_of(task)][:2] == ["ruler_qa_squad:1500:0", "ruler_qa_squad:1500:2"]
    (task,) = build("qa_squad", preparation(tmp_path, tmp_path, samples=500, lengths=(1500,)))
    assert len(rows_of(task)) == 61
    with pytest.raises(InputError, match="ruler_qa_squad does not fit 1,500 tokens"):
        build("qa_squad", preparation(tmp_path, tmp_path, samples=4, lengths=(1500,)))


def test_changed_questions(data, tmp_path):
    build("niah_single_1", preparation(data, tmp_path))
    (path,) = (tmp_path / "questions").rglob("questions.jsonl")
    path.write_text(path.read_text().replace("grass", "glass", 1))
    with pytest.raises(InputError, match="does not hold what its manifest says; remove"):
        build("niah_single_1", preparation(data, tmp_path))


@pytest.mark.parametrize("name", ["niah_single_3", "niah_multikey_1", "vt", "cwe", "fwe", "qa_squad", "qa_hotpot"])
def test_too_short(name, data, tmp_path):
    """The length that the sentence names is enough."""
    with pytest.raises(InputError, match=rf"ruler_{name} does not fit 64 tokens .* --lengths from") as refused:
        build(name, preparation(data, tmp_path, lengths=(64,)))
    named = int(str(refused.value).rpartition("--lengths from ")[2].split(",")[0])
    assert named > 100
    (task,) = build(name, preparation(data, tmp_path, lengths=(named,)))
    assert len(rows_of(task)) == 4
    assert not list((tmp_path / "questions").rglob("64-*"))


@SLOW
@pytest.mark.parametrize("name", ["niah_single_2", "niah_multikey_3", "vt", "cwe"])
def test_cost_grows_with_length_only(name, data, tmp_path):
    """The tokens counted for a question are a few times its length, also at lengths that outgrow the essays."""
    for length in (8192, 65536):
        counting = preparation(data, tmp_path, lengths=(length,), samples=3)
        build(name, counting)
        assert counting.count_tokens.tokens < 6.5 * 3 * length
        assert counting.count_tokens.calls < 8 * 3


def test_missing_and_wrong_files(data, tmp_path):
    with pytest.raises(InputError, match="say where it is with --data"):
        build("niah_single_2", preparation(None, tmp_path))
    for content, problem in (("[]", "object"), ('{"text": 3}', "field 'text'"), ("{", "not readable JSON")):
        (tmp_path / "PaulGrahamEssays.json").write_text(content)
        with pytest.raises(InputError, match=problem):
            build("niah_single_2", preparation(tmp_path, tmp_path))
    (tmp_path / "squad.json").write_text('{"data": [{"paragraphs": [{"context": "A.", "qas": [{"answers": []}]}]}]}')
    with pytest.raises(InputError, match=r"data\[0\].paragraphs\[0\].qas\[0\]"):
        build("qa_squad", preparation(tmp_path, tmp_path))
    for row in ('{"question": "Who?", "answer": "I", "context": [["T"]]}', '{"question": "Who?", "context": []}', "3"):
        (tmp_path / "wrong").mkdir(exist_ok=True)
        (tmp_path / "wrong" / "hotpotqa.json").write_text(f"[{row}]")
        with pytest.raises(InputError, match="question 1 should have"):
            documents.read_hotpotqa(tmp_path / "wrong" / "hotpotqa.json")


def test_unknown_words(data, tmp_path):
    """The demo's tokenizer has three hundred words, and none of RULER's."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes" / "demo" / "model", local_files_only=True)
    prepared = replace(preparation(data, tmp_path), tokenizer=tokenizer, count_tokens=Counting(tokenizer))
    with pytest.raises(InputError, match=r"words unknown to the tokenizer; .*--wording FILE"):
        build("niah_single_1", prepared)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "niah_multikey_1"])
def test_depths_are_uniform(task, data):
    """Every fifth of the text holds the asked needle in a fifth of the questions."""
    maker = needles.NeedleMaker(
        needles.NEEDLE_TASKS[task], official.official().needles, 4096, needles.essay_prose(ESSAYS)
    )
    fifths = Counter()
    for number in range(1000):
        made = maker(400, tasks.Random(f"{number}"))
        place = made.prompt.index(f" is: {made.answers[0]}.") / len(made.prompt)
        fifths[min(int(place * 5), 4)] += 1
    assert all(150 < fifths[fifth] < 250 for fifth in range(5))


def test_sentences_of_essays(monkeypatch):
    """Punkt splits them where nltk has its data; the official text is the same but for the needles' places."""
    text = "It rains,\n Mr.  Smith. Does it?  Yes!"
    assert needles.essay_prose.__wrapped__(text).beginning(7) == ["It rains, Mr.", "Smith.", "Does it?", "Yes!"]
    assert needles.essay_prose.__wrapped__(text).beginning(10) == [
        *("It rains, Mr.", "Smith.", "Does it?", "Yes!"),
        "It rains, Mr.",
    ]
    punkt = SimpleNamespace(
        data=SimpleNamespace(find=lambda name: name), sent_tokenize=lambda plain: [plain[:20], plain[21:]]
    )
    monkeypatch.setattr(needles.importlib, "import_module", lambda name: punkt)
    assert needles.sentence_splitter() == "punkt"
    assert needles.essay_prose.__wrapped__(text).beginning(5) == ["It rains, Mr. Smith.", "Does"]


def test_asked_key_is_there_once(data):
    """Also where there are as many needles as keys: with two values, no answer would be the right one."""
    words = replace(
        official.official().needles, keys={f"key{i}": f"KEY{i}?" for i in range(12)}, values=("one", "two", "three")
    )
    maker = needles.NeedleMaker(needles.NEEDLE_TASKS["niah_multikey_2"], words, 4096, None)
    for number in range(50):
        made = maker(40, tasks.Random(number))
        asked = made.prompt.split("KEY")[1].split("?")[0]
        assert made.prompt.count(f"for key{asked} is:") == 1


def test_codes_have_an_answer():
    """The third of the three is more frequent than what follows, at every size."""
    maker = listings.CodeMaker(official.official().frequent_words, 2000)
    for size in range(maker.smallest, 300):
        made = maker(size, tasks.Random(1))
        listed = made.prompt.split("coded words. ")[1].split("\n")[0].split(" ")
        (noise, _), *ranked = Counter(listed).most_common()
        assert noise == "..."
        assert {word for word, _ in ranked[:3]} == set(made.answers)
        assert len(ranked) == 3 or ranked[2][1] > ranked[3][1]


def test_common_words_beyond_the_list():
    """More words than there are: all of them more often, and the common ones stay ahead."""
    words = replace(official.official().common_words, words=tuple("abcdefghijklmnop"), example=False)
    maker = listings.ListMaker(words, 1024)
    for size in (11, 16, 17, 40, 500):
        made = maker(size, tasks.Random(2))
        count = Counter(part for part in made.prompt.split("\n")[1].split(" ") if not part.endswith("."))
        assert {word for word, _ in count.most_common(10)} == set(made.answers)
        rest = [number for word, number in count.items() if word not in made.answers]
        assert min(count[word] for word in made.answers) >= 5 * max(rest)


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 500)), min_size=1, max_size=6),
    st.integers(1, 200_000),
    st.integers(0, 3000),
)
def test_search_finds_the_largest(pieces, budget, guess):
    """In texts of pieces, each so many units of so many tokens; what follows has one token each."""
    calls = []

    def count(size):
        calls.append(size)
        tokens = 0
        for units, each in pieces:
            taken = min(size, units)
            tokens, size = tokens + taken * each, size - taken
        return tokens + size

    found = recipe.largest_fitting(count, budget, 1, guess)
    assert len(calls) < 50
    if count(1) > budget:
        assert found is None
    else:
        assert found.tokens == count(found.size)
        assert found.tokens == budget or (found.tokens < budget < count(found.size + 1))


def test_search_by_the_worst_text():
    """Sizes whose tokens jump are halved after eight counts; a tokenizer that counts nothing is refused."""
    calls = []

    def steps(size):
        calls.append(size)
        return 10 if size < 777_777 else 10_000_000

    assert recipe.largest_fitting(steps, 1000_000, 1) == recipe.Fitted(777_776, 10)
    assert len(calls) < 45
    with pytest.raises(InputError, match="it is none for text"):
        recipe.largest_fitting(lambda size: 5, 1000, 1)
    assert recipe.largest_fitting(lambda size: size, 0, 1) is None
