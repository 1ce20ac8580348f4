"""Shards round-trip; cut or changed ones, and those of another model, are refused."""

import dataclasses
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.small_shards import PROVENANCE, edit_manifest, make_record, write

from nemo_longpo.errors import InputError
from nemo_longpo.shards import schema, writer
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.schema import PairRecord, spans_to_mask, validate_record
from nemo_longpo.shards.writer import ShardWriter


@pytest.fixture
def shards(tmp_path):
    write(tmp_path / "shards", *(make_record(index) for index in range(5)))
    return tmp_path / "shards"


def assert_same(left: PairRecord, right: PairRecord) -> None:
    for field in dataclasses.fields(PairRecord):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, tuple):
            assert len(a) == len(b)
            assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))
        elif isinstance(a, np.ndarray):
            assert np.array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == b


def test_round_trip_over_several_files(shards):
    reader = ShardReader(shards, tokenizer_fingerprint="a" * 64)
    assert [file.records for file in reader.manifest.files] == [2, 2, 1]
    assert len(reader) == 5
    for index in (4, 0, 3, 1, 2):
        assert_same(reader[index], make_record(index))
    assert_same(reader[-1], make_record(4))
    with pytest.raises(IndexError):
        reader[5]
    assert reader.lengths().tolist() == [[5 + index, 7, 5] for index in range(5)]
    assert vars(reader.manifest.counts) == {
        "documents": 5,
        "turns": 10,
        "trunk_tokens": 35,
        "chosen_tokens": 35,
        "rejected_tokens": 25,
    }
    assert reader.manifest.length_histogram == {"16": 5}
    assert reader.manifest.generation == {"respond": {"max_new_tokens": 8}}
    assert not any(shards.parent.glob(".*"))
    reader.verify()


def test_chunk_spans_are_optional(tmp_path):
    spans = np.array([[2, 5], [0, 0]], dtype=np.int32)
    records = [make_record(0, chunk_spans=spans), make_record(1)]
    write(tmp_path / "shards", *records)
    reader = ShardReader(tmp_path / "shards")
    reader.verify()
    for found, record in zip(reader, records, strict=True):
        assert_same(found, record)


PROMPTS = (np.arange(3, dtype=np.int32), np.arange(40, 49, dtype=np.int32))


def test_short_prompts_are_optional_and_read_on_demand(tmp_path):
    records = [make_record(0, short_prompt_ids=PROMPTS), make_record(1)]
    write(tmp_path / "shards", *records)
    for short_prompts in (True, False):
        reader = pickle.loads(pickle.dumps(ShardReader(tmp_path / "shards", short_prompts=short_prompts)))
        reader.verify()
        assert_same(reader[0], records[0] if short_prompts else make_record(0))
        assert_same(reader[1], records[1])
    assert not any(ids.flags.writeable for ids in ShardReader(tmp_path / "shards")[0].short_prompt_ids)


def test_prompts_that_are_not_asked_for_are_not_looked_at(tmp_path):
    """An id outside the vocabulary ends every read that wants it, and no other."""
    write(tmp_path / "shards", make_record(0, short_prompt_ids=PROMPTS))
    path = tmp_path / "shards" / "shard-00000.arrow"
    path.write_bytes(path.read_bytes().replace(PROMPTS[1].tobytes(), PROMPTS[1].tobytes()[:-4] + b"\x64\0\0\0"))
    assert_same(ShardReader(tmp_path / "shards", short_prompts=False)[0], make_record(0))
    with pytest.raises(InputError, match=r"'short_prompt_ids' holds token id 100 in turn 2, outside"):
        ShardReader(tmp_path / "shards")[0]


@pytest.mark.parametrize(("version", "lacking"), [(1, {"chunk_spans", "short_prompt_ids"}), (2, {"short_prompt_ids"})])
def test_shards_of_older_versions_are_read(shards, monkeypatch, version, lacking):
    """What was written before a column existed: its schema lacks the column, its manifest has a lower version."""
    shutil.rmtree(shards)
    monkeypatch.setattr(schema, "ARROW_SCHEMA", schema.ARROW_SCHEMAS[version])
    monkeypatch.setattr(writer, "ARROW_SCHEMA", schema.ARROW_SCHEMAS[version])
    monkeypatch.setattr(writer, "SCHEMA_VERSION", version)
    write(shards, *(make_record(index) for index in range(5)))
    monkeypatch.undo()
    for reader in (ShardReader(shards), ShardReader(shards, short_prompts=False)):
        assert reader.manifest.schema_version == version
        assert set(schema.ARROW_SCHEMA.names) - set(reader._batch(0, 0).schema.names) == lacking
        reader.verify()
        assert_same(reader[3], make_record(3))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 6], [0, 0]], "must be spans inside the trunk's 5 tokens"),
        ([[-1, 2], [0, 0]], "must be spans inside the trunk's 5 tokens"),
        ([[3, 2], [0, 0]], "must be spans inside the trunk's 5 tokens"),
        ([[0, 2]], "has 1 turns, but there are 2"),
    ],
)
def test_spans_of_chunks_lie_in_the_trunk(spans, message):
    with pytest.raises(InputError, match=f"'chunk_spans' {message}"):
        validate_record(make_record(0, chunk_spans=np.array(spans, dtype=np.int32)))


def test_reader_survives_pickling_and_maps_instead_of_copying(shards):
    reader = pickle.loads(pickle.dumps(ShardReader(shards)))
    record = reader[2]
    assert_same(record, make_record(2))
    assert not record.trunk_ids.flags.writeable


def test_datasets_reads_every_file(shards):
    datasets = pytest.importorskip("datasets")
    rows = [row for path in sorted(shards.glob("*.arrow")) for row in datasets.Dataset.from_file(str(path))]
    assert [row["doc_id"] for row in rows] == [f"document {index}" for index in range(5)]
    assert rows[3]["trunk_ids"] == list(range(8))
    assert rows[3]["chosen_spans"] == [[0, 2], [4, 7]]
    assert rows[3]["ref_chosen_logps"] == [[-0.5, -0.5], [-3.0, -3.0, -3.0]]
    assert rows[3]["lengths"] == {"trunk": 8, "chosen": 7, "rejected": 5}


def test_same_input_gives_the_same_bytes(shards, tmp_path):
    for output in (tmp_path / "again", shards):
        write(output, *(make_record(index) for index in range(5)))
    for path in shards.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_existing_output_with_other_content_is_refused_and_kept(shards, tmp_path):
    before = (shards / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="already holds other shards"):
        write(shards, make_record(0))
    assert (shards / "manifest.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"), ShardWriter(tmp_path / "mine", PROVENANCE):
        pass


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"pairs.jsonl, line 7.*'trunk_ids'.*empty"):
        write(
            tmp_path / "shards",
            make_record(0),
            make_record(1, trunk_ids=np.array([], np.int32)),
            where="pairs.jsonl, line 7",
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no pair is left"), ShardWriter(tmp_path / "shards", PROVENANCE):
        pass
    assert list(tmp_path.iterdir()) == []


def test_doubled_document_and_mixed_references_are_refused(tmp_path):
    with pytest.raises(InputError, match="occurs twice"):
        write(tmp_path / "shards", make_record(0), make_record(0))
    with pytest.raises(InputError, match="'long', but the shards"):
        write(tmp_path / "shards", make_record(0, ref_context="long"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("doc_id", "", "non-empty"),
        ("ref_context", "medium", "one of"),
        ("trunk_ids", np.array([1, 2]), "int32"),
        ("chosen_ids", np.array([1, 2, 3, 4, 5, 6, -7], np.int32), "negative"),
        ("rejected_ids", np.array([1, 2, 3, 4, 100], np.int32), "outside the vocabulary of 100"),
        ("chosen_spans", np.array([[0, 2], [1, 7]], np.int32), "ordered"),
        ("chosen_spans", np.array([[0, 2], [4, 8]], np.int32), "inside 7 tokens"),
        ("chosen_spans", np.array([[0, 2], [4, 6]], np.int32), "end at 7, the length of chosen_ids"),
        ("ref_chosen_logps", (np.zeros(2, np.float32),), "1 turns"),
        ("ref_chosen_logps", (np.zeros(2, np.float32), np.zeros(2, np.float32)), "2 values in turn 2"),
        ("ref_rejected_logps", (np.full(1, np.nan, np.float32), np.zeros(2, np.float32)), "no log-probability"),
        ("ref_rejected_logps", (np.full(1, 0.5, np.float32), np.zeros(2, np.float32)), "no log-probability"),
        ("nll_ignore_spans", np.array([[0, 6]], np.int32), "covers an answer"),
        ("nll_ignore_spans", np.array([[11, 13]], np.int32), "inside 12 tokens"),
        ("short_prompt_ids", PROMPTS[:1], "has 1 turns, but there are 2"),
        ("short_prompt_ids", (), "has 0 turns, but there are 2"),
        ("short_prompt_ids", (PROMPTS[0], PROMPTS[1].astype(np.int64)), "must be a flat int32 array in turn 2"),
        ("short_prompt_ids", (PROMPTS[0], PROMPTS[1][:0]), "is empty in turn 2"),
        ("short_prompt_ids", (PROMPTS[0] - 1, PROMPTS[1]), "negative token id -1 in turn 1"),
        ("short_prompt_ids", (PROMPTS[0] + 98, PROMPTS[1]), "token id 100 in turn 1, outside the vocabulary of 100"),
    ],
)
def test_validation_names_the_field(field, value, message):
    with pytest.raises(InputError, match=f"document .*'{field}'.*{message}"):
        validate_record(make_record(0, **{field: value}), vocab_size=100)


def test_mismatched_turn_counts_are_refused():
    changes = {"rejected_spans": np.array([[0, 5]], np.int32), "ref_rejected_logps": (np.zeros(5, np.float32),)}
    with pytest.raises(InputError, match="has 1 turns, but chosen_spans has 2"):
        validate_record(make_record(0, **changes))


def test_spans_to_mask():
    assert spans_to_mask(np.array([[0, 1], [3, 5]]), 6).tolist() == [True, False, False, True, True, False]


def test_truncated_and_missing_files_are_refused_at_open(shards):
    path = shards / "shard-00001.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(InputError, match=rf"shard-00001.arrow has {len(content) - 9} bytes.*{len(content)}"):
        ShardReader(shards)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.arrow is missing"):
        ShardReader(shards)


def test_tampered_file_is_found_by_verify(shards):
    path = shards / "shard-00000.arrow"
    content = bytearray(path.read_bytes())
    position = bytes(content).index(np.arange(10, 17, dtype=np.int32).tobytes())
    content[position] += 1
    path.write_bytes(content)
    reader = ShardReader(shards)
    with pytest.raises(InputError, match=r"shard-00000.arrow has sha256 .* manifest says"):
        reader.verify()


def test_wrong_counts_in_the_manifest_are_found_by_verify(shards):
    edit_manifest(shards, lambda content: content["counts"].update(turns=11))
    with pytest.raises(InputError, match="counts do not match"):
        ShardReader(shards).verify()


def test_another_tokenizer_is_refused(shards):
    with pytest.raises(InputError, match=f"{'a' * 64}.*{'d' * 64}"):
        ShardReader(shards, tokenizer_fingerprint="d" * 64)


def test_another_schema_version_is_refused(shards):
    edit_manifest(shards, lambda content: content.update(schema_version=99))
    with pytest.raises(InputError, match=r"schema version 99.*reads versions 1 to 3;"):
        ShardReader(shards)


def test_broken_or_missing_manifest_is_refused(shards, tmp_path):
    with pytest.raises(InputError, match=r"no manifest.json"):
        ShardReader(tmp_path)
    edit_manifest(shards, lambda content: content.pop("counts"))
    with pytest.raises(InputError, match="field 'counts' is missing"):
        ShardReader(shards)
    (shards / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        ShardReader(shards)


WRITE_LARGE = """
import resource, sys
import numpy as np
from nemo_longpo.errors import InputError
from support.small_shards import PROVENANCE, make_record
from nemo_longpo.shards.writer import ShardWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with ShardWriter(sys.argv[1], PROVENANCE) as writer:
        for index in range(20):
            writer.add(make_record(index, trunk_ids=np.zeros(1 << 12, dtype=np.int32)))
except InputError as error:
    print(error)
"""


def test_no_room_on_the_disk_leaves_nothing(tmp_path):
    """The kernel refuses files of more than 64 KiB here, as a full disk would refuse at some byte."""
    command = [sys.executable, "-c", WRITE_LARGE, str(tmp_path / "shards")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert "shards cannot be written: a file may not become that large here; make room" in said.stdout
    assert list(tmp_path.iterdir()) == []
