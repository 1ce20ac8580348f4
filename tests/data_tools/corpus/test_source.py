"""Documents from every kind of file, and one clear sentence for what is not a document."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from nemo_longpo.data_tools.corpus.source import CorpusSource
from nemo_longpo.errors import InputError


def read(*paths, rows_per_part=2, wanted=range(1000)):
    source = CorpusSource([str(path) for path in paths], rows_per_part=rows_per_part)
    return [(number, [row.record for row in rows]) for number, rows in source.parts(lambda number: number in wanted)]


def test_text_files_are_named_by_their_path(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", "ignored.bin"):
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    assert read(tmp_path) == [
        (
            0,
            [
                {"doc_id": "a.md", "document": "text of a.md"},
                {"doc_id": "b.txt", "document": "text of b.txt"},
            ],
        ),
        (1, [{"doc_id": "sub/c.txt", "document": "text of sub/c.txt"}]),
    ]
    assert [number for number, _ in read(tmp_path, wanted=[1])] == [1]
    assert CorpusSource([str(tmp_path)], rows_per_part=2).rows_in_parts == [2, 1]


def test_jsonl_and_parquet(tmp_path):
    lines = [{"text": "one", "id": "x"}, {"text": "two"}]
    (tmp_path / "d.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    pyarrow.parquet.write_table(pa.table({"id": [7, 8], "text": ["three", "four"]}), tmp_path / "d.parquet")
    pyarrow.parquet.write_table(pa.table({"text": ["five"]}), tmp_path / "e.parquet")
    records = [record for _, part in read(tmp_path) for record in part]
    assert [record["doc_id"] for record in records] == ["x", "d.jsonl:3", "7", "8", "e.parquet:1"]
    assert [record["document"] for record in records] == ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good \xff bad", r"a.txt: not UTF-8 \(at byte 5\)"),
        ("a.txt", b"  \n", "a.txt: field 'text' must be non-empty"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": 3}\n', "a.jsonl, line 2: field 'text'"),
        ("a.jsonl", b'{"text": "ok"}\nnot json\n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl, line 1: not UTF-8"),
        ("a.jsonl", b'["text"]\n', "a.jsonl, line 1: must be a JSON object"),
        ("a.jsonl", b'{"text": "ok", "id": []}\n', "field 'id' must be text or a number"),
        ("a.jsonl", b'{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}\n', "line 2: document id 'x' was already"),
        ("a.jsonl", b"\n\n", "holds no documents"),
        ("a.parquet", b"not parquet", "a.parquet is not a readable Parquet file"),
        ("a.bin", b"x", r"holds no .txt, .md, .jsonl, .parquet file"),
    ],
)
def test_bad_documents(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_missing_path_and_missing_column(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    pyarrow.parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'text' \(it has body\)"):
        read(tmp_path)
