"""`longpo data import-hf`, then score and pack: the same shards as from the text."""

import json

import datasets
import numpy as np
import pytest
from support.published_pairs import IGNORED, padded, published_row, text_pair
from support.small_corpus import save_stopping_model

from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.shards.reader import ShardReader

STYLES = {"mistral-v0.2": "mistral", "qwen2.5": "qwen2"}


@pytest.fixture(scope="module", params=STYLES)
def model(request, tmp_path_factory):
    return save_stopping_model(tmp_path_factory.mktemp("model"), STYLES[request.param], request.param)


@pytest.fixture
def chat(model):
    return load_chat(model)


@pytest.fixture
def pad(chat):
    tokenizer = chat.tokenizer
    return tokenizer.unk_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def import_rows(longpo, model, rows, tmp_path, *words):
    """The records and the report."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "imported"
    status, out, err = longpo("import-hf", "--input", path, "--model", model, "--output", output, "--json", *words)
    assert status == 0, err
    parts = sorted(output.glob("part-*"))
    records = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    return records, json.loads(out)["report"]


def make_shards(longpo, model, pairs, work, ref_context):
    """Two documents a part in every case: log-probs depend in their last digits on what is computed together."""
    for words in (("score", "--ref-context", ref_context, "--part-size", 2), ("pack",)):
        output = work / words[0]
        status, _, err = longpo(*words, "--pairs", pairs, "--model", model, "--output", output)
        assert status == 0, err
        pairs = output
    return ShardReader(pairs)


@pytest.mark.parametrize("ref_context", ["short", pytest.param("long", marks=pytest.mark.slow)])
def test_same_shards_as_from_the_text(longpo, model, chat, pad, tmp_path, ref_context):
    pairs = [text_pair(index, turns) for index, turns in enumerate((1, 3, 2, 4))]
    direct = make_shards(longpo, model, write_jsonl(tmp_path / "pairs.jsonl", pairs), tmp_path / "direct", ref_context)
    rows = [padded(published_row(chat, pair), pad, masks=bool(index % 2)) for index, pair in enumerate(pairs)]
    datasets.Dataset.from_list(rows[:2]).to_parquet(tmp_path / "rows.parquet")
    splits = {"dev": rows[:1], "train": rows[2:]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(split) for name, split in splits.items()})
    saved.save_to_disk(tmp_path / "rows")
    words = ("import-hf", "--input", tmp_path / "rows.parquet", tmp_path / "rows", "--model", model)
    status, _, err = longpo(*words, "--output", tmp_path / "imported")
    assert status == 0, err
    found = make_shards(longpo, model, tmp_path / "imported", tmp_path / "indirect", ref_context)
    assert len(found) == len(direct) == 4
    for record, expected in zip(found, direct, strict=True):
        # A dataset of ids does not say where in them a chunk ends and an instruction begins.
        assert (record.chunk_spans is None, len(expected.chunk_spans)) == (True, expected.turns)
        for name, value in (vars(expected) | {"chunk_spans": None}).items():
            if isinstance(value, tuple):
                assert [turn.tolist() for turn in getattr(record, name)] == [turn.tolist() for turn in value], name
            else:
                np.testing.assert_array_equal(getattr(record, name), value, err_msg=name)
    assert found.manifest.generation["import-hf"]["split"] == "train"


def test_tables_are_cut_only_by_rows(longpo, model, tmp_path):
    words = ("import-hf", "--input", tmp_path, "--model", model, "--output", tmp_path / "out", "--part-bytes", 5)
    status, _, err = longpo(*words)
    assert (status, err.endswith("give part_size, not part_bytes")) == (2, True)


def test_refused_documents_are_listed(longpo, model, chat, tmp_path):
    rows = [published_row(chat, text_pair(index)) for index in (1, 2, 3)]
    rows[1]["chosen_labels"] = [IGNORED] * 5
    del rows[2]["ref_chosen_input_ids"][2], rows[2]["ref_chosen_labels"][2]
    records, report = import_rows(longpo, model, rows, tmp_path)
    assert [record["doc_id"] for record in records] == ["document-1", "document-3"]
    assert report == {
        "documents_in": 3,
        "documents_out": 2,
        "refused_no_answer": 1,
        "repaired_surplus_references": 1,
        "turns_cut": 1,
        "turns_out": 5,
    }
    (refusal,) = json.loads((tmp_path / "imported" / "refused.json").read_text())
    assert (refusal["doc_id"], refusal["where"]) == ("document-2", "rows.jsonl, record 2")
    assert (refusal["reason"], refusal["detail"]) == ("no_answer", "nothing is labelled as an answer")


def test_interrupted_import_keeps_refusals(longpo, model_dir, tmp_path):
    """It stops at a row with an invalid id; repairing the id keeps the length of the file."""
    chat = load_chat(model_dir)
    rows = [published_row(chat, text_pair(index, 1)) for index in range(4)]
    rows[0]["chosen_labels"] = [IGNORED] * 5
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows[:2], rows[2] | {"id": [7]}, rows[3]])
    words = ("import-hf", "--input", path, "--model", model_dir, "--output", tmp_path / "imported", "--part-size", 2)
    status, _, err = longpo(*words)
    assert (status, "rows.jsonl, record 3: column 'id' must be text or a number, not list" in err) == (2, True)
    first = (tmp_path / "imported" / "part-00000.jsonl").read_bytes()
    path.write_text(path.read_text().replace('"id": [7]', '"id": "7"'))
    assert longpo(*words)[0] == 0
    assert (tmp_path / "imported" / "part-00000.jsonl").read_bytes() == first
    assert '"doc_id": "7"' in (tmp_path / "imported" / "part-00001.jsonl").read_text()
    (refusal,) = json.loads((tmp_path / "imported" / "refused.json").read_text())
    assert refusal["doc_id"] == "document-0"
    assert not list((tmp_path / "imported").glob(".*"))


def test_nothing_usable_and_doubled_names(longpo, model_dir, tmp_path):
    chat = load_chat(model_dir)
    row = published_row(chat, text_pair(1, 1))
    words = ("import-hf", "--input", tmp_path / "rows.jsonl", "--model", model_dir, "--output")
    write_jsonl(tmp_path / "rows.jsonl", [row, row])
    status, _, err = longpo(*words, tmp_path / "doubled")
    assert (status, "rows.jsonl, record 2: the name 'document-1' was already used by" in err) == (2, True)
    status, _, err = longpo(*words, tmp_path / "other", "--id-field", "name")
    assert status == 0
    assert json.loads((tmp_path / "other" / "part-00000.jsonl").read_text().splitlines()[1])["doc_id"] == "rows.jsonl:2"
    write_jsonl(tmp_path / "rows.jsonl", [row | {"chosen_labels": [IGNORED] * 3}])
    status, _, err = longpo(*words, tmp_path / "useless")
    assert (status, "none of the 1 documents can be used; the first one (rows.jsonl, record 1)" in err) == (2, True)


def test_score_refuses_another_tokenizer(longpo, model_dir, tmp_path):
    row = published_row(load_chat(model_dir), text_pair(1, 1))
    import_rows(longpo, model_dir, [row], tmp_path)
    other = save_stopping_model(tmp_path / "other", "qwen2")
    words = ("score", "--pairs", tmp_path / "imported", "--model", other, "--output", tmp_path / "scored")
    status, _, err = longpo(*words)
    assert (status, "was imported with tokenizer" in err) == (2, True)
    assert not (tmp_path / "scored").exists()
