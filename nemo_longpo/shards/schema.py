"""One training record: a document, its turns, both answers to every turn, and what the reference model thought of them.

Full chosen sequence = trunk_ids + chosen_ids; full rejected sequence = trunk_ids + rejected_ids.
The trunk ends with the assistant opening of turn 1. A branch is `y_1 <eot> (turn close, user opening) I_2 (user close,
assistant opening) y_2 <eot> ...` and ends with the last <eot>.

Shape letters: T trunk tokens, A chosen-branch tokens, B rejected-branch tokens, N turns, M ignored spans.
"""

from dataclasses import dataclass
from typing import Any

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
    columns = vars(record) | {"lengths": dict(zip(("trunk", "chosen", "rejected"), record.lengths, strict=True))}
    spans = {name: value.tolist() for name, value in columns.items() if name.endswith("spans") and value is not None}
    arrays = [pa.array([(columns | spans)[field.name]], field.type) for field in ARROW_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=ARROW_SCHEMA)


def from_batch(batch: pa.RecordBatch) -> PairRecord:
    """Return the record of a batch of any schema version; the arrays are read-only views of the mapped file."""

    def value(name: str, kind: pa.DataType) -> Any:
        found = batch.column(name)[0]
        if kind == _ids:
            return found.values.to_numpy(zero_copy_only=True)
        if kind == _logps:
            return tuple(turn.values.to_numpy(zero_copy_only=True) for turn in found)
        if kind == _spans and found.is_valid:
            return found.values.flatten().to_numpy(zero_copy_only=True).reshape(-1, 2)
        return found.as_py()

    return PairRecord(
        **{field.name: value(field.name, field.type) for field in batch.schema if field.name != "lengths"}
    )
