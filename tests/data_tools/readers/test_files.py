"""Lines of JSON from files as other programs leave them: marked, padded, compressed, damaged."""

import gzip
import json

import pyarrow as pa
import pytest

from nemo_longpo.data_tools.corpus.source import CorpusSource
from nemo_longpo.data_tools.published.document import REQUIRED
from nemo_longpo.data_tools.published.source import PublishedSource
from nemo_longpo.data_tools.runner.rows import PartsSource
from nemo_longpo.errors import InputError

RECORDS = [{"text": f"text {number}", **{column: [number] for column in REQUIRED}} for number in range(3)]
LINES = b"\n".join(json.dumps(record).encode() for record in RECORDS) + b"\n"
MARK = "\ufeff".encode()


def records_of(path):
    """Return the content of a file by each reader that accepts it."""
    sources = {
        "corpus": CorpusSource([str(path)]),
        "published": PublishedSource([str(path)], split="train", id_field="id", rows_per_part=2),
    }
    if path.suffix == ".jsonl":
        sources["pairs"] = PartsSource(path)
    found = {
        name: [row.record for _, rows in source.parts(lambda _: True) for row in rows]
        for name, source in sources.items()
    }
    return {
        name: [record.get("document") or record.get("columns", record)["text"] for record in records]
        for name, records in found.items()
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", MARK + LINES),
        ("a.jsonl.gz", gzip.compress(MARK + LINES)),
        ("a.jsonl.gz", gzip.compress(LINES) + bytes(1024)),
        ("a.jsonl.gz", gzip.compress(LINES[:50]) + gzip.compress(LINES[50:]) + bytes(3)),
        ("a.jsonl.zst", pa.Codec("zstd").compress(MARK + LINES, asbytes=True)),
    ],
    ids=["mark", "mark within gzip", "padding", "two members and padding", "mark within zstd"],
)
def test_marks_and_padding_are_no_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = records_of(tmp_path / name)
    assert found == {name: ["text 0", "text 1", "text 2"] for name in found}


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"text": ' + b"1" * 5_000 + b"}", b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"{"],
    ids=["deep", "digits", "half a character", "bytes", "cut"],
)
def test_unreadable_lines_are_named(tmp_path, line):
    """A blank line counts as a line, so that an editor finds the place."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES.splitlines()[0] + b"\n\n" + line + b"\n")
    sources = {
        "corpus": lambda: CorpusSource([str(path)]),
        "published": lambda: PublishedSource([str(path)], split="train", id_field="id", rows_per_part=9),
        "pairs": lambda: PartsSource(path),
    }
    for open_source in sources.values():
        with pytest.raises(InputError, match=r"a\.jsonl, line 3 is not readable JSON: .*; correct or remove the line$"):
            list(open_source().parts(lambda _: True))


def test_damage_within_compressed_data(tmp_path):
    """A wrong block of deflate is neither an OSError nor an EOFError to the library."""
    packed = bytearray(gzip.compress(LINES * 50))
    packed[20:40] = bytes(255 - byte for byte in packed[20:40])
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    for open_source in (
        lambda: CorpusSource([str(tmp_path / "a.jsonl.gz")]),
        lambda: PublishedSource([str(tmp_path / "a.jsonl.gz")], split="train", id_field="id", rows_per_part=9),
    ):
        with pytest.raises(InputError, match=r"a\.jsonl\.gz cannot be read \("):
            open_source()
