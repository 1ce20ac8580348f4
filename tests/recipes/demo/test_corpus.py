import json
import random

import pytest

from nemo_longpo.recipes.demo.corpus import (
    NAMES,
    PLACES,
    SENTENCES_PER_PARAGRAPH,
    STOP,
    all_words,
    answer,
    asked_name,
    make_document,
    question,
    write_corpus,
)


def words(text: str) -> list[str]:
    return text.replace(STOP, f" {STOP}").split()


def test_same_seed_gives_same_document() -> None:
    first, again, other = (make_document(random.Random(seed), 300) for seed in (3, 3, 4))
    assert first == again
    assert first.text != other.text


@pytest.mark.parametrize("tokens", [24, 64, 97, 128, 511, 1024, 1536])
def test_lengths_facts_and_words(tokens: int) -> None:
    document = make_document(random.Random(tokens), tokens)
    found = words(document.text)
    assert tokens - 3 <= len(found) <= tokens
    assert set(found) <= set(all_words())
    stated = [(word.rstrip(":"), found[i + 1]) for i, word in enumerate(found) if word.endswith(":")]
    assert stated == list(document.facts.items())
    assert len({name for name, _ in stated}) == len(stated) >= 2
    assert set(document.facts) <= set(NAMES)
    assert set(document.facts.values()) <= set(PLACES)


def test_facts_are_spread_evenly() -> None:
    for seed in range(20):
        found = words(make_document(random.Random(seed), 1024).text)
        positions = [i for i, word in enumerate(found) if word.endswith(":")]
        gaps = [b - a for a, b in zip([0, *positions], [*positions, len(found)], strict=True)]
        assert max(gaps) <= 75, f"seed {seed}: a chunk of 80 tokens could hold no whole fact"


@pytest.mark.parametrize("tokens", [64, 1536, 4096])
def test_facts_may_be_stated_more_than_once(tokens: int) -> None:
    document = make_document(random.Random(tokens), tokens, mentions=2)
    found = words(document.text)
    assert tokens - 3 <= len(found) <= tokens
    stated = [(word.rstrip(":"), found[i + 1]) for i, word in enumerate(found) if word.endswith(":")]
    assert len(stated) == tokens // 24
    assert {name: place for name, place in stated} == document.facts  # noqa: C416 (the last statement would win)
    if tokens > 64:  # a second time may come before the first of others
        assert len(set(stated[: len(document.facts)])) < len(document.facts)
    assert len(set(stated)) == len(document.facts) == max(2, min(tokens // 48, len(NAMES)))


def test_paragraphs_end_with_sentences() -> None:
    for paragraph in make_document(random.Random(0), 400).text.split("\n\n"):
        assert paragraph.endswith(STOP)
        assert 1 <= paragraph.count(STOP) <= SENTENCES_PER_PARAGRAPH


def test_too_many_facts_are_refused() -> None:
    with pytest.raises(ValueError, match="10 tokens cannot state 5 facts"):
        make_document(random.Random(0), 10, 5)


def test_questions_can_be_read_back() -> None:
    assert question("Marta") == "Where is MARTA?"
    assert answer("Marta", "Lisbon") == "Marta: Lisbon"
    assert asked_name(f" {question('Marta')} ") == "Marta"
    assert asked_name("Where is Marta?") is None


def test_corpus_file(tmp_path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        write_corpus(path, documents=3, tokens=200, seed=5)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    records = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert len({record["doc_id"] for record in records}) == len({record["text"] for record in records}) == 3
    assert sorted(tmp_path.iterdir()) == paths


def test_corpus_of_many_lengths(tmp_path) -> None:
    write_corpus(tmp_path / "a", documents=40, tokens=200, seed=5, shortest=50, mentions=2)
    texts = [words(json.loads(line)["text"]) for line in (tmp_path / "a").read_text().splitlines()]
    lengths = [len(text) for text in texts]
    assert 47 <= min(lengths) < 80
    assert 170 < max(lengths) <= 200
    assert any(len(set(facts)) < len(facts) for text in texts if (facts := [w for w in text if w.endswith(":")]))


def test_corpus_of_many_short_documents(tmp_path) -> None:
    write_corpus(tmp_path / "a", documents=200, tokens=1600, seed=5, shortest=100, logarithmic=True)
    lengths = [len(words(json.loads(line)["text"])) for line in (tmp_path / "a").read_text().splitlines()]
    assert min(lengths) >= 97
    assert max(lengths) <= 1600
    shares = [sum(low <= length < 2 * low for length in lengths) / 200 for low in (100, 200, 400, 800)]
    assert all(0.15 < share < 0.35 for share in shares), shares
