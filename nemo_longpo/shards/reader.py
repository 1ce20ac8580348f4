"""Read shards: random access to memory-mapped records, each validated when it is first read.

Arrow maps a file without looking at it: offsets may point anywhere and text may be no UTF-8, and taking a value then
ends the process or gives another document's bytes. So a column is validated, in full, before anything is taken from it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nemo_longpo.errors import InputError

from .manifest import Manifest, ShardFile, Tally, load_manifest, sha256_file
from .schema import ARROW_SCHEMAS, OPTIONAL_COLUMNS, SHORT_PROMPTS, PairRecord, from_batch, validate_record


class ShardReader:
    """A sequence of PairRecord, `len(reader)` and `reader[i]`; arrays are read-only views of the mapped files.

    Opening checks the manifest and every file's size. With `tokenizer_fingerprint` (of the tokenizer that the trainer
    uses) shards of another tokenizer are refused. Files are mapped on first use, so a reader is cheap to make and to
    send to a worker process. A record is validated when it is first read, so damage ends in a sentence and never ends
    the process. Only the hashes tell whether every byte is as it was written.

    Without `short_prompts` the records' `short_prompt_ids` are None and their bytes are left alone: a chunk can be as
    long as a part of the trunk, and few objectives need it.

    Raises InputError if a file, a record or a document is damaged, or if the fingerprints differ; it names them.
    """

    def __init__(self, directory: str | Path, *, tokenizer_fingerprint: str | None = None, short_prompts: bool = True):
        self.directory = Path(directory)
        self.short_prompts = short_prompts
        self.manifest: Manifest = load_manifest(self.directory)
        self._expected_tokenizer = tokenizer_fingerprint
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != self.manifest.tokenizer_fingerprint:
            raise InputError(
                f"{self.directory} was written with tokenizer {self.manifest.tokenizer_fingerprint}, but the model's "
                f"tokenizer is {tokenizer_fingerprint}; train the model whose tokenizer made the shards"
            )
        for file in self.manifest.files:
            self._check_size(file)
        self._ends = list(accumulate(file.records for file in self.manifest.files))
        self._batches: dict[int, list[pa.RecordBatch]] = {}
        self._sound: set[tuple[int, int]] = set()

    def __reduce__(self) -> tuple[object, ...]:
        known, prompts = self._expected_tokenizer, self.short_prompts
        return partial(ShardReader, tokenizer_fingerprint=known, short_prompts=prompts), (self.directory,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> PairRecord:
        number, position = self._locate(index)
        batch = self._batch(number, position)
        if (number, position) in self._sound:
            return from_batch(batch)
        check_columns(batch, batch.schema.names, self._where(number, position))
        record = from_batch(batch)
        self._validate(record, batch, self._where(number, position))
        self._sound.add((number, position))
        return record

    def __iter__(self) -> Iterator[PairRecord]:
        return (self[index] for index in range(len(self)))

    def lengths(self) -> NDArray[np.int64]:
        """Return int64 [records, 3]: tokens of (trunk, chosen, rejected) of every record, without reading the ids."""
        rows = []
        for index in range(len(self)):
            number, position = self._locate(index)
            batch = self._batch(number, position)
            check_columns(batch, ["lengths"], self._where(number, position))
            rows.append(_stored_lengths(batch))
        return np.array(rows, dtype=np.int64).reshape(-1, 3)

    def short_lengths(self) -> list[list[tuple[int, int, int]]]:
        """Return, of every record and turn, the tokens of (short prompt, chosen answer, rejected answer).

        The ids are not read. A record without short prompts, or whose short prompts are not read, has no entries.
        """
        return [self._short_lengths(*self._locate(index)) for index in range(len(self))]

    def _short_lengths(self, number: int, position: int) -> list[tuple[int, int, int]]:
        batch, names = self._batch(number, position), [SHORT_PROMPTS, "chosen_spans", "rejected_spans"]
        if SHORT_PROMPTS not in batch.schema.names:
            return []
        check_columns(batch, names, self._where(number, position))
        prompts, *answers = (batch.column(name)[0] for name in names)
        if not prompts.is_valid:
            return []
        tokens = [np.diff(spans.values.flatten().to_numpy().reshape(-1, 2))[:, 0].tolist() for spans in answers]
        return list(zip(prompts.values.value_lengths().to_pylist(), *tokens, strict=False))

    def describe(self, index: int) -> str:
        """Say where a record is, and which document it holds: "FILE, record N, document 'ID'"."""
        number, position = self._locate(index)
        batch, where = self._batch(number, position), self._where(number, position)
        check_columns(batch, ["doc_id"], where)
        return f"{where}, document {batch.column('doc_id')[0].as_py()!r}"

    def verify(self) -> None:
        """Raises InputError if a checksum, a record or one of the manifest's sums is wrong; reads everything."""
        self.check_hashes({file.name: sha256_file(self.directory / file.name) for file in self.manifest.files})
        tally, seen = Tally(), set[str]()
        for index, record in enumerate(self):
            if record.doc_id in seen:
                raise InputError(f"{self._where(*self._locate(index))}: doc_id {record.doc_id!r} occurs twice")
            seen.add(record.doc_id)
            tally.add(record)
        if (tally.counts, tally.length_histogram) != (self.manifest.counts, self.manifest.length_histogram):
            raise InputError(f"{self.directory}: the manifest's counts do not match the records; rebuild the shards")

    def check_hashes(self, found: Mapping[str, str]) -> None:
        """Raises InputError if the sha256 of a file, by its name in `found`, is not the manifest's."""
        for file in self.manifest.files:
            if found.get(file.name, file.sha256) != file.sha256:
                raise InputError(
                    f"{self.directory / file.name} has sha256 {found[file.name]}, but the manifest says {file.sha256}; "
                    "the file was changed after it was written: copy it again or rebuild the shards"
                )

    def _validate(self, record: PairRecord, batch: pa.RecordBatch, where: str) -> None:
        validate_record(record, where=where, vocab_size=self.manifest.vocab_size)
        for field, stored, held in (
            ("lengths", _stored_lengths(batch), record.lengths),
            ("ref_context", record.ref_context, self.manifest.ref_context),
        ):
            if stored != held:
                raise InputError(
                    f"{where}, document {record.doc_id!r}: field {field!r} is {stored}, but the shards hold {held}; "
                    "rebuild the shards with `longpo data pack`"
                )

    def _check_size(self, file: ShardFile) -> None:
        path = self.directory / file.name
        if not path.is_file():
            raise InputError(f"{path} is missing; copy it again or rebuild the shards")
        size = path.stat().st_size
        if size != file.bytes:
            raise InputError(
                f"{path} has {size} bytes, but the manifest says {file.bytes}: it is truncated or was changed; "
                "copy it again or rebuild the shards"
            )

    def _locate(self, index: int) -> tuple[int, int]:
        """Return (file number, record within the file)."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number] - self.manifest.files[number].records)

    def _where(self, number: int, position: int) -> str:
        return f"{self.directory / self.manifest.files[number].name}, record {position}"

    def _batch(self, number: int, position: int) -> pa.RecordBatch:
        if number not in self._batches:
            file = self.manifest.files[number]
            schema = ARROW_SCHEMAS[self.manifest.schema_version]
            self._batches[number] = map_stream(self.directory / file.name, schema, file.records)
        batch = self._batches[number][position]
        if self.short_prompts:
            return batch
        return batch.select([name for name in batch.schema.names if name != SHORT_PROMPTS])


def _stored_lengths(batch: pa.RecordBatch) -> tuple[int, int, int]:
    row = batch.column("lengths")[0].as_py()
    return row["trunk"], row["chosen"], row["rejected"]


ADVICE = "copy it again, or rebuild the shards"


def map_stream(path: Path, schema: pa.Schema, records: int) -> list[pa.RecordBatch]:
    """Return the batches of a mapped stream, one record each, with their contents unread and unchecked.

    Raises:
        InputError: not a stream, of another schema, or of another number of records.
    """
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            if stream.schema != schema:
                raise InputError(f"{path} has other columns than shards of its schema version; {ADVICE}")
            batches = list(stream)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable Arrow stream ({_reason(error)}); {ADVICE}") from error
    if len(batches) != records:
        raise InputError(f"{path} holds {len(batches)} records, but the manifest says {records}; {ADVICE}")
    for position, batch in enumerate(batches):
        if batch.num_rows != 1:
            raise InputError(f"{path}, record {position}: {batch.num_rows} records stand in its place; {ADVICE}")
    return batches


def check_columns(batch: pa.RecordBatch, names: list[str], where: str) -> None:
    """Raises InputError, naming a column, if an offset leaves its buffer, text is not UTF-8 or a value is null."""
    for name in names:
        column = batch.column(name)
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise InputError(f"{where}: column {name!r} is damaged ({_reason(error)}); {ADVICE}") from error
        if len(column) != 1 or (_holds_null(column) and not (name in OPTIONAL_COLUMNS and column.null_count)):
            raise InputError(f"{where}: column {name!r} lacks a value; {ADVICE}")


def _holds_null(array: pa.Array) -> bool:
    is_list = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    parts = [array.flatten()] if is_list else array.flatten() if pa.types.is_struct(array.type) else []
    return array.null_count > 0 or any(map(_holds_null, parts))


def _reason(error: Exception) -> str:
    """Return Arrow's message, which can run over several lines, in one."""
    return " ".join(ascii(str(error)).strip("'\"").split("\\n")[0].split())[:200]
