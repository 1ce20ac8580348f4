"""Documents from every kind of file, in parts that depend only on the files, and one sentence for bad ones."""

import gzip
import json
import os
import pickle
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from nemo_longpo.data_tools.corpus.source import CorpusSource, Fields
from nemo_longpo.errors import InputError


def read(*paths, rows_per_part=2, wanted=range(1000), fields=None):
    source = CorpusSource([str(path) for path in paths], rows_per_part=rows_per_part, fields=fields)
    return [(number, [row.record for row in rows]) for number, rows in source.parts(lambda number: number in wanted)]


def lines_of(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def zstd(content):
    return pa.Codec("zstd").compress(content, asbytes=True)


def test_text_files_are_named_by_their_path(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.py", "sub/empty.py", "ignored.bin"):
        (tmp_path / name).write_text(f"text of {name}" * (name != "sub/empty.py"), encoding="utf-8")
    assert read(tmp_path) == [
        (
            0,
            [
                {"doc_id": "a.md", "document": "text of a.md"},
                {"doc_id": "b.txt", "document": "text of b.txt"},
            ],
        ),
        (1, [{"doc_id": "sub/c.py", "document": "text of sub/c.py"}]),
    ]
    assert [number for number, _ in read(tmp_path, wanted=[1])] == [1]
    assert CorpusSource([str(tmp_path)], rows_per_part=2).rows_in_parts == [2, 1]
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfmarked")
    assert read(tmp_path / "b.txt") == [(0, [{"doc_id": "b.txt", "document": "marked"}])]


def test_parts_are_closed_by_bytes_too(tmp_path):
    texts = ["a" * 10, "灯" * 10, "b" * 10, "c" * 25, "d" * 200, "e", "f", "g", "h"]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def parts(**limits):
        source = CorpusSource([str(path)], **limits)
        found = [[row.record["document"] for row in rows] for _, rows in source.parts(lambda _: True)]
        assert [len(part) for part in found] == source.rows_in_parts
        assert [text for part in found for text in part] == texts
        return [len(part) for part in found], source.identity().get("bytes_per_part")

    # 10 + 30 (UTF-8) fit, 10 more do not; a longer document is a part by itself.
    assert parts(rows_per_part=3, bytes_per_part=40) == ([2, 2, 1, 3, 1], 40)
    # A limit that closes no part is not recorded: outputs of before it existed go on.
    assert parts(rows_per_part=3, bytes_per_part=1000) == ([3, 3, 3], None)
    assert parts(rows_per_part=3) == ([3, 3, 3], None)


def test_jsonl_and_parquet(tmp_path):
    lines = [{"text": "one", "id": "x"}, {"text": "two"}]
    (tmp_path / "d.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    pyarrow.parquet.write_table(pa.table({"id": [7, 8], "text": ["three", "four"]}), tmp_path / "d.parquet")
    pyarrow.parquet.write_table(pa.table({"text": ["five"]}), tmp_path / "e.parquet")
    records = [record for _, part in read(tmp_path) for record in part]
    assert [record["doc_id"] for record in records] == ["x", "d.jsonl:3", "7", "8", "e.parquet:1"]
    assert [record["document"] for record in records] == ["one", "two", "three", "four", "five"]


RECORDS = [{"text": f"document {number}", "id": f"id-{number}"} for number in range(50)]


def write_jsonl(path):
    # Blank lines count as lines, not as documents.
    path.write_bytes(lines_of(RECORDS).replace(b"\n", b"\n \n"))


def write_gzip(path):
    content = lines_of(RECORDS)
    path.write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]))


def write_zstd(path):
    path.write_bytes(zstd(lines_of(RECORDS)))


def write_parquet(path):
    pyarrow.parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=19, write_page_checksum=True)


def write_dataset(path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(RECORDS).save_to_disk(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.jsonl.gz", write_gzip),
        ("a.jsonl.zst", write_zstd),
        ("a.parquet", write_parquet),
        ("saved", write_dataset),
    ],
)
def test_parts_can_be_read_alone(tmp_path, name, write):
    write(tmp_path / name)
    (tmp_path / "z.txt").write_text("the last one")
    source = CorpusSource([str(tmp_path / name), str(tmp_path / "z.txt")], rows_per_part=3)
    assert source.rows_in_parts == [3] * 17
    whole = dict(source.parts(lambda _: True))
    documents = [row.record["document"] for rows in whole.values() for row in rows]
    assert documents == [record["text"] for record in RECORDS] + ["the last one"]
    sent = pickle.loads(pickle.dumps(source))
    for wanted in ([16], [5], range(0, 17, 2), (6, 7, 15)):
        assert list(sent.parts(lambda number, wanted=wanted: number in wanted)) == [(n, whole[n]) for n in wanted]


def test_parts_are_claimed_just_before_reading(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    asked = []
    parts = CorpusSource([str(tmp_path)], rows_per_part=10).parts(lambda number: asked.append(number) or number % 2)
    assert asked == []
    assert next(parts)[0] == 1
    assert asked == [0, 1]
    assert next(parts)[0] == 3
    assert asked == [0, 1, 2, 3]


def test_lines_and_rows_are_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    write_parquet(tmp_path / "b.parquet")
    source = CorpusSource([str(tmp_path / "a.jsonl")], rows_per_part=4)
    (part,) = source.parts(lambda number: number == 3)
    assert [row.where for row in part[1]] == [f"{tmp_path}/a.jsonl, line {line}" for line in (25, 27, 29, 31)]
    source = CorpusSource([str(tmp_path / "b.parquet")], rows_per_part=4)
    (part,) = source.parts(lambda number: number == 7)
    assert [row.where for row in part[1]] == [f"{tmp_path}/b.parquet, row {row}" for row in (29, 30, 31, 32)]


def test_other_field_names(tmp_path):
    record = {"body": "one", "key": 3, "text": 5, "id": ["not", "read"]}
    (tmp_path / "a.jsonl").write_bytes(lines_of([record]))
    pyarrow.parquet.write_table(pa.Table.from_pylist([record | {"key": "four"}]), tmp_path / "b.parquet")
    records = read(tmp_path, fields=Fields("body", "key"))[0][1]
    assert records == [{"doc_id": "3", "document": "one"}, {"doc_id": "four", "document": "one"}]


def test_splits_of_a_saved_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"text": ["a", "b"], "more": [1, 2]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "top" / "saved")
    (tmp_path / "top" / "b.txt").write_text("beside it")
    names = [record["doc_id"] for record in read(tmp_path / "top", rows_per_part=9)[0][1]]
    assert names == ["b.txt", "saved/test:1", "saved/test:2", "saved/train:1", "saved/train:2"]
    assert [record["doc_id"] for record in read(tmp_path / "top" / "saved" / "train")[0][1]] == ["train:1", "train:2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\n\xff bad", r"a.txt: not UTF-8 \(at byte 5, in line 2\)"),
        ("a.txt", b"  \n", "a.txt is empty; remove the file"),
        ("a.txt", "naïve".encode()[:3], "a.txt: not UTF-8"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": 3}\n', "a.jsonl, line 2: field 'text' must be non-empty text"),
        ("a.jsonl", b'{"text": "ok"}\n\n{"text": " \\n"}\n', "a.jsonl, line 3: field 'text' must be non-empty text"),
        ("a.jsonl", b'{"body": "ok"}\n', "line 1: field 'text' is missing .there are 'body'.; .* --text-field"),
        ("a.jsonl", b'{"text": "ok"}\nnot json\n', "a.jsonl, line 2 is not readable JSON"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "cut o', "a.jsonl, line 2 is not readable JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl, line 1 is not readable JSON: not UTF-8 at byte 10"),
        ("a.jsonl", b'{"text": "half \\ud800 pair"}\n', "line 1 is not readable JSON: it escapes half of a character"),
        ("a.jsonl", b'["text"]\n', "a.jsonl, line 1 should hold a JSON object"),
        ("a.jsonl", b'{"text": "ok", "id": []}\n', "field 'id' must be text or a whole number"),
        ("a.jsonl", b'{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}\n', "line 2: document id 'x' was already"),
        ("a.jsonl", b"\n\n", "holds no documents"),
        ("a.jsonl.gz", gzip.compress(lines_of(RECORDS))[:-9], r"a.jsonl.gz cannot be read \(Compressed file ended"),
        ("a.jsonl.gz", lines_of(RECORDS), r"a.jsonl.gz cannot be read \(Not a gzipped"),
        ("a.jsonl.gz", gzip.compress(b"[1]"), "a.jsonl.gz, line 1 should hold a JSON object"),
        ("a.jsonl.zst", zstd(lines_of(RECORDS))[:-9], r"a.jsonl.zst cannot be read \(Truncated"),
        ("a.jsonl.zst", lines_of(RECORDS), r"a.jsonl.zst cannot be read \(ZSTD"),
        ("a.parquet", b"not parquet", "a.parquet is not a readable Parquet file"),
        ("a.bin", b"x", "holds no document: no plain text, .jsonl"),
    ],
)
def test_bad_documents(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_path_unknown_suffix_and_missing_column(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"a.pdf has an unknown suffix; give plain text"):
        read(tmp_path / "a.pdf")
    pyarrow.parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'text' \(it has body\); .* --text-field"):
        read(tmp_path)


def test_damaged_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(InputError, match=r"a.parquet is not a readable Parquet file"):
        read(path)
    path.write_bytes(content.replace(b"document", b"DOCUMENT", 1))
    with pytest.raises(InputError, match=r"a.parquet is not a readable Parquet file") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    text = pa.array([b"fine", b"\xff"]).view(pa.string())
    pyarrow.parquet.write_table(pa.table({"text": text}), path)
    with pytest.raises(InputError, match=r"a.parquet, row 2: not UTF-8"):
        read(path)
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="holds no documents"):
        read(path)


def test_repeated_ids_are_found_across_files(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "a.txt").write_text("first")
    (tmp_path / "two" / "b.jsonl").write_bytes(lines_of([{"text": "x"}, {"text": "second", "id": "a.txt"}]))
    with pytest.raises(InputError, match=r"b.jsonl, line 2: document id 'a.txt' was already used by .*one/a.txt"):
        read(tmp_path / "one", tmp_path / "two")
    with pytest.raises(InputError, match=r"document id 'a.txt' was already used"):
        read(tmp_path / "one", tmp_path / "one")


def test_changed_corpus_changes_its_identity(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    before = CorpusSource([str(tmp_path)]).identity()
    assert before == CorpusSource([str(tmp_path)]).identity()
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    renamed = CorpusSource([str(tmp_path)]).identity()
    assert {key for key in before if before[key] != renamed[key]} == {"names_and_sizes_sha256"}
    (tmp_path / "a.txt").write_text("second")
    assert CorpusSource([str(tmp_path)]).identity() | {"documents": 2, "files": 2, "bytes": 11} != renamed
    assert CorpusSource([str(tmp_path)]).identity()["documents"] == 2


@pytest.fixture
def folder():
    """A directory in which permissions count, because the test reads it without root's rights."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def without_privileges(function, *arguments):
    """Run `function` as the user nobody, if this process is root's."""
    if os.geteuid() != 0:
        return function(*arguments)
    os.seteuid(65534)
    try:
        return function(*arguments)
    finally:
        os.seteuid(0)


def test_unreadable_directories_and_files(folder):
    folder.chmod(0o755)
    (folder / "top" / "closed").mkdir(parents=True)
    (folder / "top" / "a.txt").write_text("fine")
    (folder / "top" / "closed").chmod(0)
    (folder / "secret.txt").write_text("no")
    (folder / "secret.txt").chmod(0)
    (folder / "links").mkdir()
    (folder / "links" / "lost.txt").symlink_to(folder / "nowhere")
    for path, message in (
        ("top", r"top/closed cannot be read \(.*Permission denied"),
        ("secret.txt", r"secret.txt cannot be read \(.*Permission denied"),
        ("links", r"lost.txt cannot be read \(.*No such file"),
    ):
        with pytest.raises(InputError, match=message):
            without_privileges(read, folder / path)


def test_datasets_by_name(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^hf:owner/name:train is not in the cache .*; download it") as caught:
        read("hf:owner/name:train")
    assert "\n" not in str(caught.value)
    # The library also takes a directory of files for a name.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.jsonl").write_bytes(lines_of(RECORDS[:3]))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = read(f"hf:{tmp_path}/own:train", rows_per_part=9)
    assert [record["document"] for record in found[0][1]] == ["document 0", "document 1", "document 2"]
    with pytest.raises(InputError, match=r"own:nosuch cannot be loaded \(.*check owner, name and split"):
        read(f"hf:{tmp_path}/own:nosuch")


def test_damaged_dataset_and_missing_library(tmp_path, monkeypatch):
    write_dataset(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(InputError, match="saved is not a readable dataset") as caught:
        read(tmp_path / "saved")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="saved needs the library of Hugging Face datasets: pip install datasets"):
        read(tmp_path / "saved")


def test_two_columns_of_one_name(tmp_path):
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "text", "other"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has 2 columns 'text'; rename all but"):
        read(tmp_path / "a.parquet")
    other = pa.table([["a"], ["b"], ["c"]], names=["text", "other", "other"])
    pa.parquet.write_table(other, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0][1][0]["document"] == "a"
