"""`longpo data chunk` alone: the same bytes for any number of processes, effects of settings, and refusals."""

import gzip
import json

import pytest
from support.small_corpus import make_document
from transformers import AutoTokenizer

from nemo_longpo.data_tools.runner.claims import Claims


def lines_of(directory):
    return [json.loads(line) for path in sorted(directory.glob("part*")) for line in path.read_text().splitlines()]


def snapshot(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def mixed_corpus(corpus):
    """Text files, and lines in a compressed file: parts begin and end within both."""
    records = [{"text": make_document(20 + number, 4 + number % 3), "id": f"line-{number}"} for number in range(8)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (corpus / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return corpus


@pytest.mark.slow
def test_workers_and_ranks_do_not_change_bytes(longpo, mixed_corpus, model_dir, tmp_path):
    def chunk(output, *more):
        words = ("--model", model_dir, "--chunk-tokens", 96, "--chunks-per-document", 2, "--part-size", 2)
        status, out, err = longpo(
            "chunk", "--input", mixed_corpus, *words, "--output", tmp_path / output, *more, "--json"
        )
        assert status == 0, err
        return json.loads(out)["report"]

    report = chunk("one")
    assert report["documents_out"] == report["prose_out"] == 15
    expected = snapshot(tmp_path / "one")
    assert len([name for name in expected if name.startswith("part")]) == 8
    assert chunk("workers", "--num-workers", 2) == report
    assert snapshot(tmp_path / "workers") == expected
    for world_size in (2, 3):
        output = tmp_path / f"ranks-{world_size}"
        output.mkdir()
        share = ("--world-size", world_size, "--rank")
        with Claims(output) as others:
            assert all(others.take(str(number)) for number in range(0, 8, world_size))
            assert chunk(output, *share, 1) == {}
        assert chunk(output, *share, 0) == report
        assert snapshot(output) == expected


def test_chunks_depend_only_on_id_and_seed(longpo, model_dir, tmp_path):
    records = [{"text": make_document(number, 20), "id": f"doc {number}"} for number in range(6)]

    def chunk(name, records, *more):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        words = ("chunk", "--input", path, "--model", model_dir, "--chunk-tokens", 64, "--output", tmp_path / name)
        assert longpo(*words, *more)[0] == 0
        return {record["doc_id"]: record["turns"] for record in lines_of(tmp_path / name)}

    drawn = chunk("all", records)
    assert {len(turns) for turns in drawn.values()} == {4}
    assert chunk("other-order", records[::-1], "--part-size", 1) == drawn
    assert chunk("other-seed", records, "--seed", 1) != drawn
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for record in records:
        position = 0
        for turn in drawn[record["id"]]:
            position = record["text"].index(turn["chunk"], position) + len(turn["chunk"])
            assert len(tokenizer(turn["chunk"], add_special_tokens=False)["input_ids"]) <= 64


def test_domains(longpo, model_dir, tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    code = "".join(f"def function_{number}(x):\n    y = x\n\n    return y\n\n\n" for number in range(40))
    (folder / "a.py").write_text(code)
    (folder / "b.tex").write_text("".join(f"\\section{{S {n}}}\n{make_document(n, 1)}" for n in range(9)))
    (folder / "c.txt").write_text(make_document(1))
    words = ("chunk", "--input", folder, "--model", model_dir, "--chunk-tokens", 90)
    status, out, _ = longpo(*words, "--output", tmp_path / "auto", "--json")
    report = json.loads(out)["report"]
    assert (status, report["code_out"], report["latex_out"], report["prose_out"]) == (0, 1, 1, 1)
    chunks = {record["doc_id"]: [turn["chunk"] for turn in record["turns"]] for record in lines_of(tmp_path / "auto")}
    assert all(chunk.startswith("def ") and chunk.endswith("return y") for chunk in chunks["a.py"])
    assert all(chunk.startswith("\\section") for chunk in chunks["b.tex"])
    assert longpo(*words, "--output", tmp_path / "prose", "--domain", "prose")[0] == 0
    as_prose = {
        record["doc_id"]: [turn["chunk"] for turn in record["turns"]] for record in lines_of(tmp_path / "prose")
    }
    assert as_prose["c.txt"] == chunks["c.txt"]
    assert not all(chunk.startswith("\\section") for chunk in as_prose["b.tex"])


def test_other_field_names_are_settings(longpo, model_dir, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"body": make_document(1), "key": "mine"}) + "\n")
    words = ("chunk", "--input", path, "--model", model_dir, "--chunk-tokens", 64, "--output", tmp_path / "out")
    assert longpo(*words, "--text-field", "body", "--id-field", "key")[0] == 0
    assert [record["doc_id"] for record in lines_of(tmp_path / "out")] == ["mine"]
    status, _, err = longpo(*words, "--text-field", "body", "--id-field", "other")
    assert (status, 'settings.id_field was "key", now "other"' in err) == (2, True)


def test_documents_outside_the_window_are_counted(longpo, corpus, model_dir, tmp_path):
    words = ("chunk", "--input", corpus, "--model", model_dir, "--chunk-tokens", 64, "--part-size", 2, "--json")
    lengths = [len(chat_ids) for chat_ids in tokenised(corpus, model_dir)]
    middle = sorted(lengths)[3]
    status, out, err = longpo(*words, "--output", tmp_path / "some", "--min-document-tokens", middle)
    assert status == 0, err
    report = json.loads(out)["report"]
    assert (report["documents_out"], report["dropped_too_short"]) == (4, 3)
    limits = ("--min-document-tokens", middle + 1, "--max-document-tokens", middle + 1)
    for _ in range(2):
        status, _, err = longpo(*words, "--output", tmp_path / "none", *limits)
        assert status == 2
        assert f"none of the 7 documents is between min_document_tokens {middle + 1} and max_document_tokens" in err
        assert "4 are too short, 3 too long" in err
        assert "\n" not in err
    status, _, err = longpo(*words, "--output", tmp_path / "out", *limits[:2], "--max-document-tokens", 8)
    assert (status, f"max_document_tokens 8 is below min_document_tokens {middle + 1}" in err) == (2, True)


def tokenised(corpus, model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = [path.read_text(encoding="utf-8") for path in corpus.rglob("*.txt")]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_bad_document_is_found_before_writing(longpo, corpus, model_dir, tmp_path):
    (corpus / "z.txt").write_bytes(b"last \xff")
    words = ("chunk", "--input", corpus, "--model", model_dir, "--chunk-tokens", 64, "--part-size", 1)
    status, _, err = longpo(*words, "--output", tmp_path / "out", "--num-workers", 2)
    assert status == 2
    assert "z.txt: not UTF-8 (at byte 5, in line 1); convert the file to UTF-8" in err
    assert not (tmp_path / "out").exists()


def test_model_without_a_chat_template(longpo, corpus, model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    words = ("chunk", "--input", corpus, "--model", tmp_path / "model", "--chunk-tokens", 64)
    status, _, err = longpo(*words, "--output", tmp_path / "out")
    assert (status, "has no chat template: use an instruct model" in err, "\n" in err) == (2, True, False)
    assert not (tmp_path / "out").exists()
