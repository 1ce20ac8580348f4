"""One training record: a document, its turns, both answers to every turn, and what the reference model thought of them.

Full chosen sequence = trunk_ids + chosen_ids; full rejected sequence = trunk_ids + rejected_ids.
The trunk ends with the assistant opening of turn 1. A branch is `y_1 <eot> (turn close, user opening) I_2 (user close,
assistant opening) y_2 <eot> ...` and ends with the last <eot>.

Shape letters: T trunk tokens, A chosen-branch tokens, B rejected-branch tokens, N turns, M ignored spans.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA_VERSION = 2  # what is written; version 1 had no chunk_spans and is read as well
REF_CONTEXTS = ("short", "long")
Span = tuple[int, int]
"""[start, end) of token positions."""
# A log-prob may round to just above zero where the model is certain.
LOGP_TOLERANCE = 1e-4

Ids = NDArray[np.int32]
Logps = NDArray[np.float32]

_ids = pa.list_(pa.int32())
_spans = pa.list_(pa.list_(pa.int32(), 2))
_logps = pa.list_(pa.list_(pa.float32()))

ARROW_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("trunk_ids", _ids),
        ("chosen_ids", _ids),
        ("rejected_ids", _ids),
        ("chosen_spans", _spans),
        ("rejected_spans", _spans),
        ("nll_ignore_spans", _spans),
        ("ref_chosen_logps", _logps),
        ("ref_rejected_logps", _logps),
        ("ref_context", pa.string()),
        ("lengths", pa.struct([("trunk", pa.int32()), ("chosen", pa.int32()), ("rejected", pa.int32())])),
        ("chunk_spans", _spans),
    ]
)
OPTIONAL_COLUMNS = ("chunk_spans",)
# The files of every schema version that is read.
ARROW_SCHEMAS = {1: pa.schema([field for field in ARROW_SCHEMA if field.name != "chunk_spans"]), 2: ARROW_SCHEMA}


@dataclass(frozen=True, eq=False, kw_only=True)
class PairRecord:
    """A document with N turns. Spans are [start, end); response spans lie within their branch and include the
    end-of-turn token; `nll_ignore_spans` index trunk + chosen. Log-probs are natural logarithms, one per span token.
    `chunk_spans` say which trunk tokens hold the chunk that a turn's chosen answer was made from, those at its borders
    included; (0, 0) where it is no stretch of the trunk, None where nothing is known of any. Training ignores them."""

    doc_id: str
    trunk_ids: Ids  # int32 [T]
    chosen_ids: Ids  # int32 [A]
    rejected_ids: Ids  # int32 [B]
    chosen_spans: Ids  # int32 [N, 2]
    rejected_spans: Ids  # int32 [N, 2]
    nll_ignore_spans: Ids  # int32 [M, 2]
    ref_chosen_logps: tuple[Logps, ...]  # N float32 arrays
    ref_rejected_logps: tuple[Logps, ...]  # N float32 arrays
    ref_context: str  # "short": LongPO, "long": the DPO baseline
    chunk_spans: Ids | None = None  # int32 [N, 2]

    @property
    def turns(self) -> int:
        return len(self.chosen_spans)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of (trunk, chosen branch, rejected branch)."""
        return len(self.trunk_ids), len(self.chosen_ids), len(self.rejected_ids)


def to_batch(record: PairRecord) -> pa.RecordBatch:
    """Return an Arrow record batch that holds one record."""
    trunk, chosen, rejected = record.lengths
    columns = {
        "doc_id": record.doc_id,
        "trunk_ids": record.trunk_ids,
        "chosen_ids": record.chosen_ids,
        "rejected_ids": record.rejected_ids,
        "chosen_spans": record.chosen_spans.tolist(),
        "rejected_spans": record.rejected_spans.tolist(),
        "nll_ignore_spans": record.nll_ignore_spans.tolist(),
        "ref_chosen_logps": list(record.ref_chosen_logps),
        "ref_rejected_logps": list(record.ref_rejected_logps),
        "ref_context": record.ref_context,
        "lengths": {"trunk": trunk, "chosen": chosen, "rejected": rejected},
        "chunk_spans": None if record.chunk_spans is None else record.chunk_spans.tolist(),
    }
    arrays = [pa.array([columns[field.name]], field.type) for field in ARROW_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=ARROW_SCHEMA)


def from_batch(batch: pa.RecordBatch) -> PairRecord:
    """Return the record of a batch of any schema version; the arrays are read-only views of the mapped file."""

    def ids(name: str) -> Ids:
        found: Ids = batch.column(name)[0].values.to_numpy(zero_copy_only=True)
        return found

    def spans(name: str) -> Ids:
        found: Ids = batch.column(name)[0].values.flatten().to_numpy(zero_copy_only=True)
        return found.reshape(-1, 2)

    def logps(name: str) -> tuple[Logps, ...]:
        return tuple(turn.values.to_numpy(zero_copy_only=True) for turn in batch.column(name)[0])

    has_chunks = "chunk_spans" in batch.schema.names and batch.column("chunk_spans")[0].is_valid
    return PairRecord(
        doc_id=batch.column("doc_id")[0].as_py(),
        trunk_ids=ids("trunk_ids"),
        chosen_ids=ids("chosen_ids"),
        rejected_ids=ids("rejected_ids"),
        chosen_spans=spans("chosen_spans"),
        rejected_spans=spans("rejected_spans"),
        nll_ignore_spans=spans("nll_ignore_spans"),
        ref_chosen_logps=logps("ref_chosen_logps"),
        ref_rejected_logps=logps("ref_rejected_logps"),
        ref_context=batch.column("ref_context")[0].as_py(),
        chunk_spans=spans("chunk_spans") if has_chunks else None,
    )
