"""Write shards: Arrow stream files of one record batch per document, plus the manifest, all or nothing.

The stream format, not the file format: `datasets.Dataset.from_file` reads only streams, and with one batch per record
a memory-mapped stream has random access too, because opening it touches no more than the batch headers.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from nemo_longpo.atomic import new_directory
from nemo_longpo.errors import InputError

from .manifest import MANIFEST_NAME, Manifest, Provenance, ShardFile, Tally, load_manifest, sha256_file
from .schema import ARROW_SCHEMA, SCHEMA_VERSION, PairRecord, to_batch, validate_record


class ShardWriter:
    """Context manager: `add` records, and on a clean exit the directory appears, complete.

    An exception leaves nothing. A file holds at most `max_records` records and closes after `max_bytes` bytes.

    Raises InputError if a record is not valid, if there is none, if the disk is full, and if the output exists and is
    not empty, unless it holds exactly what was written (then it is left as it is).
    """

    def __init__(
        self,
        directory: str | Path,
        provenance: Provenance,
        *,
        max_records: int = 1024,
        max_bytes: int = 1 << 30,
    ):
        self.directory = Path(directory).absolute()
        self.provenance = provenance
        self.max_records = max_records
        self.max_bytes = max_bytes
        self._files: list[ShardFile] = []
        self._tally = Tally()
        self._open: tuple[pa.OSFile, pa.RecordBatchStreamWriter] | None = None
        self._records_in_file = 0
        self._seen: set[str] = set()

    def __enter__(self) -> "ShardWriter":
        _refuse_foreign_output(self.directory)
        self._stack = ExitStack()
        self._new = self._stack.enter_context(new_directory(self.directory, kept="finished parts are kept"))
        self._stack.push(self._finish)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, record: PairRecord, *, where: str = "") -> None:
        """Append one record; `where` (a file and a line) is named if the record is not valid."""
        validate_record(record, where=where, vocab_size=self.provenance.vocab_size)
        place = where or "shards"
        if record.doc_id in self._seen:
            raise InputError(f"{place}: doc_id {record.doc_id!r} occurs twice; document ids must be unique")
        if record.ref_context != self.provenance.ref_context:
            raise InputError(
                f"{place}: field 'ref_context' is {record.ref_context!r}, but the shards hold "
                f"{self.provenance.ref_context!r} references; score all pairs in one way"
            )
        self._seen.add(record.doc_id)
        sink, stream = self._open or self._open_file()
        stream.write_batch(to_batch(record))
        self._records_in_file += 1
        self._tally.add(record)
        if self._records_in_file >= self.max_records or sink.tell() >= self.max_bytes:
            self._close_file()

    def _file_name(self) -> str:
        return f"shard-{len(self._files):05d}.arrow"

    def _open_file(self) -> tuple[pa.OSFile, pa.RecordBatchStreamWriter]:
        sink = pa.OSFile(str(self._new / self._file_name()), "wb")
        self._open = sink, pa.ipc.new_stream(sink, ARROW_SCHEMA)
        self._records_in_file = 0
        return self._open

    def _close_file(self) -> None:
        if self._open is None:
            return
        sink, stream = self._open
        stream.close()
        sink.close()
        self._open = None
        path = self._new / self._file_name()
        size = path.stat().st_size
        self._files.append(ShardFile(path.name, self._records_in_file, size, sha256_file(path)))

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close_file()
        if kind is not None:
            return
        if not self._files:
            raise InputError("no pair is left to write: the input is empty, or every document was dropped")
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            **vars(self.provenance),
            counts=self._tally.counts,
            length_histogram=self._tally.length_histogram,
            files=tuple(self._files),
        )
        (self._new / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        if self.directory.is_dir() and any(self.directory.iterdir()):
            if load_manifest(self.directory).to_json() != manifest.to_json():
                raise InputError(f"{self.directory} already holds other shards; give another output or remove it")
            shutil.rmtree(self._new)


def _refuse_foreign_output(directory: Path) -> None:
    """Stop before the work, not after it, when the output cannot be what this run will write."""
    if directory.is_file():
        raise InputError(f"{directory} is a file; give a directory for the shards")
    if directory.is_dir() and any(directory.iterdir()):
        if not (directory / MANIFEST_NAME).is_file():
            raise InputError(f"{directory} is not empty and holds no shards; give another output or empty it")
        load_manifest(directory)
