"""All containers hold the same rows in any distribution; unreadable ones are refused in one line."""

import gzip
import json
import pickle
import re

import datasets
import pyarrow as pa
import pytest
from support.published_pairs import published_row, text_pair

from nemo_longpo.data_tools.model import load_chat
from nemo_longpo.data_tools.published.source import PublishedSource


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def every_way_in(rows, directory):
    datasets.Dataset.from_list(rows).save_to_disk(directory / "saved")
    datasets.Dataset.from_list(rows).to_parquet(directory / "rows.parquet", batch_size=5)  # rows in a group
    write_jsonl(directory / "rows.jsonl", rows)
    packed = gzip.compress((directory / "rows.jsonl").read_bytes())
    (directory / "files").mkdir()
    (directory / "files" / "rows.jsonl.gz").write_bytes(packed)
    zstd = pa.Codec("zstd").compress((directory / "rows.jsonl").read_bytes(), asbytes=True)
    (directory / "rows.jsonl.zst").write_bytes(zstd)
    return [directory / name for name in ("saved", "rows.parquet", "rows.jsonl", "files", "rows.jsonl.zst")]


def test_every_container_gives_the_same_parts(longpo, model_dir, tmp_path):
    chat = load_chat(model_dir)
    rows = [published_row(chat, text_pair(index, 1 + index % 3)) for index in range(7)]
    found = {}
    for place, path in enumerate(every_way_in(rows, tmp_path)):
        for rank in (1, 0):
            output = tmp_path / f"output-{place}"
            words = ("--input", path, "--model", model_dir, "--output", output, "--part-size", 2, "--world-size", 2)
            assert longpo("import-hf", *words, "--rank", rank)[0] == 0
        found[path] = [(output / f"part-{part:05d}.jsonl").read_text() for part in range(4)]
        assert json.loads((output / "refused.json").read_text()) == []
        assert not list(output.glob(".*"))
    first = next(iter(found.values()))
    assert [json.loads(line)["doc_id"] for part in first for line in part.splitlines()] == [row["id"] for row in rows]
    assert all(parts == first for parts in found.values())


def test_source_can_be_pickled(model_dir, tmp_path):
    rows = [published_row(load_chat(model_dir), text_pair(index, 1)) for index in range(3)]
    for path in every_way_in(rows, tmp_path):
        source = PublishedSource([str(path)], split="train", id_field="id", rows_per_part=2)
        copied = pickle.loads(pickle.dumps(source))
        assert copied.rows_in_parts == source.rows_in_parts == [2, 1]
        assert copied.identity() == source.identity()
        ((part, (row,)),) = copied.parts(lambda number: number == 1)
        assert (part, row.record["part"], row.record["doc_id"]) == (1, 1, "document-2")
        assert row.where.endswith((", row 3", ", record 3"))
        assert list(row.record["columns"]["chosen_input_ids"]) == rows[2]["chosen_input_ids"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jsonl", "nowhere.jsonl does not exist; give .*hf:OWNER/NAME"),
        ("somebody/nothing", "somebody/nothing does not exist; give .*hf:OWNER/NAME"),
        ("hf:somebody/nothing", "hf:somebody/nothing (cannot be loaded|is not in the cache)"),
        ("text.txt", "text.txt has an unknown suffix; give .jsonl"),
        ("empty", "empty holds no document: no .jsonl"),
        ("empty.jsonl", "empty.jsonl holds no rows"),
        ("other.jsonl", "other.jsonl, record 1 has no column 'chosen_input_ids' \\(it has text\\)"),
        ("other.parquet", "other.parquet has no column 'chosen_input_ids'"),
        ("bad.parquet", "bad.parquet is not a readable Parquet file"),
        ("bad.jsonl.gz", "bad.jsonl.gz cannot be read"),
        ("splits", "splits has no split 'train'; choose one of dev"),
    ],
)
def test_wrong_input(longpo, model_dir, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for file, content in {
        "text.txt": b"text",
        "empty.jsonl": b"\n",
        "other.jsonl": b'{"text": "x"}\n',
        "bad.parquet": b"PAR1",
        "bad.jsonl.gz": gzip.compress(b"{}" * 100)[:-9],
    }.items():
        (tmp_path / file).write_bytes(content)
    texts = datasets.Dataset.from_dict({"text": ["x"]})
    texts.to_parquet(tmp_path / "other.parquet")
    datasets.DatasetDict({"dev": texts}).save_to_disk(tmp_path / "splits")
    words = ("import-hf", "--input", name, "--model", model_dir, "--output", tmp_path / "output")
    status, _, err = longpo(*words)
    assert status == 2
    assert re.search(message, err), err
    assert "\n" not in err
    assert not (tmp_path / "output").exists()


@pytest.fixture
def named(model_dir, tmp_path, monkeypatch):
    """A dataset with two splits, as `hf:` takes it by name: the library also takes a directory of files for a name."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [published_row(load_chat(model_dir), text_pair(index, 1)) for index in range(3)]
    (tmp_path / "own").mkdir()
    write_jsonl(tmp_path / "own" / "train.jsonl", rows[:1])
    write_jsonl(tmp_path / "own" / "test.jsonl", rows[1:])
    return f"hf:{tmp_path}/own"


def test_split_by_name_or_flag(longpo, model_dir, tmp_path, named):
    found = {}
    for output, words in {
        "default": (named,),
        "in the name": (f"{named}:test",),
        "flag": (named, "--split", "test"),
        "both": (f"{named}:test", "--split", "test"),
        "two": (named, f"{named}:test", "--id-field", "none"),
    }.items():
        status, _, err = longpo("import-hf", "--input", *words, "--model", model_dir, "--output", tmp_path / output)
        assert status == 0, err
        parts = sorted((tmp_path / output).glob("part-*.jsonl"))
        found[output] = [json.loads(line)["doc_id"] for part in parts for line in part.read_text().splitlines()]
        recorded = json.loads((tmp_path / output / "settings.json").read_text())["settings"]["split"]
        assert recorded == ("test" if "--split" in words else "train")
    name = named.removeprefix("hf:")
    assert found.pop("default") == ["document-0"]
    assert found.pop("two") == [f"{name}:1", f"{name}/test:1", f"{name}/test:2"]
    assert set(map(tuple, found.values())) == {("document-1", "document-2")}


def test_two_different_splits_are_refused(longpo, model_dir, tmp_path, named):
    words = ("--input", f"{named}:test", "--split", "train", "--model", model_dir, "--output", tmp_path / "output")
    status, _, err = longpo("import-hf", *words)
    assert (status, "own:test names another split than --split train; leave one of the two out" in err) == (2, True)
    assert not (tmp_path / "output").exists()
