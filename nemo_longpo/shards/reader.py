"""Read shards: random access to memory-mapped records, after cheap checks; full checks on request."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemo_longpo.errors import InputError

from .manifest import Counts, Manifest, ShardFile, length_bucket, load_manifest, sha256_file
from .schema import ARROW_SCHEMAS, PairRecord, from_batch
from .validation import validate_record


class ShardReader:
    """A sequence of PairRecord, `len(reader)` and `reader[i]`; arrays are read-only views of the mapped files.

    Opening checks the manifest and every file's size. With `tokenizer_fingerprint` (of the tokenizer that the trainer
    uses) shards of another tokenizer are refused. Files are mapped on first use, so a reader is cheap to make and to
    send to a worker process. Raises InputError naming the file, or both fingerprints.
    """

    def __init__(self, directory: str | Path, *, tokenizer_fingerprint: str | None = None):
        self.directory = Path(directory)
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

    def __reduce__(self) -> tuple:
        return _reopen, (self.directory, self._expected_tokenizer)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> PairRecord:
        return from_batch(self._batch(index))

    def __iter__(self) -> Iterator[PairRecord]:
        return (self[index] for index in range(len(self)))

    def lengths(self) -> np.ndarray:
        """int64 [records, 3]: tokens of (trunk, chosen, rejected) of every record, without reading the ids."""
        rows = [self._batch(index).column("lengths")[0].as_py() for index in range(len(self))]
        return np.array([[row["trunk"], row["chosen"], row["rejected"]] for row in rows], dtype=np.int64)

    def verify(self) -> None:
        """Recompute every checksum, validate every record, and compare the sums with the manifest's."""
        for file in self.manifest.files:
            found = sha256_file(self.directory / file.name)
            if found != file.sha256:
                raise InputError(
                    f"{self.directory / file.name} has sha256 {found}, but the manifest says {file.sha256}; "
                    "the file was changed after it was written: rebuild the shards"
                )
        counts = dict.fromkeys(vars(Counts()), 0)
        histogram: dict[str, int] = {}
        seen: set[str] = set()
        for index, record in enumerate(self):
            validate_record(record, where=self._where(index), vocab_size=self.manifest.vocab_size)
            if record.doc_id in seen:
                raise InputError(f"{self._where(index)}: doc_id {record.doc_id!r} occurs twice")
            seen.add(record.doc_id)
            stored = self._batch(index).column("lengths")[0].as_py()
            if tuple(stored.values()) != record.lengths:
                raise InputError(f"{self._where(index)}: field 'lengths' is {stored}, but it holds {record.lengths}")
            trunk, chosen, rejected = record.lengths
            for name, value in zip(counts, (1, record.turns, trunk, chosen, rejected), strict=True):
                counts[name] += value
            bucket = length_bucket(trunk + max(chosen, rejected))
            histogram[bucket] = histogram.get(bucket, 0) + 1
        if Counts(**counts) != self.manifest.counts or histogram != self.manifest.length_histogram:
            raise InputError(f"{self.directory}: the manifest's counts do not match the records; rebuild the shards")

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
        """(file number, record within the file)."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number] - self.manifest.files[number].records)

    def _where(self, index: int) -> str:
        number, position = self._locate(index)
        return f"{self.directory / self.manifest.files[number].name}, record {position}"

    def _batch(self, index: int) -> pa.RecordBatch:
        number, position = self._locate(index)
        if number not in self._batches:
            self._batches[number] = self._map(self.manifest.files[number])
        return self._batches[number][position]

    def _map(self, file: ShardFile) -> list[pa.RecordBatch]:
        path = self.directory / file.name
        try:
            with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
                batches = list(stream)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path} is not a readable Arrow stream ({error}); rebuild the shards") from error
        expected = ARROW_SCHEMAS[self.manifest.schema_version]
        if len(batches) != file.records or any(batch.schema != expected for batch in batches[:1]):
            raise InputError(f"{path} does not hold the {file.records} records of the manifest; rebuild the shards")
        return batches


def _reopen(directory: Path, tokenizer_fingerprint: str | None) -> ShardReader:
    return ShardReader(directory, tokenizer_fingerprint=tokenizer_fingerprint)
