"""One training record: a document, its turns, both answers to every turn, and what the reference model thought of them.

Its fields, its form in Arrow, and what must hold in it: checked before it is written, and again when it is read.

Full chosen sequence = trunk_ids + chosen_ids; full rejected sequence = trunk_ids + rejected_ids.
The trunk ends with the assistant opening of turn 1. A branch is `y_1 <eot> (turn close, user opening) I_2 (user close,
assistant opening) y_2 <eot> ...` and ends with the last <eot>.

Shape letters: T trunk tokens, A chosen-branch tokens, B rejected-branch tokens, N turns, M ignored spans, P tokens of
a short prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nemo_longpo.errors import InputError

SCHEMA_VERSION = 3  # what is written; older ones are read as well
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
_prompts = pa.list_(pa.list_(pa.int32()))

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
        ("short_prompt_ids", _prompts),
    ]
)
SHORT_PROMPTS = "short_prompt_ids"
OPTIONAL_COLUMNS = {"chunk_spans": 2, SHORT_PROMPTS: 3}
"""Columns that may hold nothing, and the schema version that they came with."""
# The files of every schema version that is read.
ARROW_SCHEMAS = {
    version: pa.schema([field for field in ARROW_SCHEMA if OPTIONAL_COLUMNS.get(field.name, 1) <= version])
    for version in range(1, SCHEMA_VERSION + 1)
}


@dataclass(frozen=True, eq=False, kw_only=True)
class PairRecord:
    """A document with N turns. Spans are [start, end); response spans lie within their branch and include the
    end-of-turn token; `nll_ignore_spans` index trunk + chosen. Log-probs are natural logarithms, one per span token.
    `chunk_spans` say which trunk tokens hold the chunk that a turn's chosen answer was made from, those at its borders
    included; (0, 0) where it is no stretch of the trunk, None where nothing is known of any. Training ignores them.
    `short_prompt_ids` are what a reference that sees only a turn's chunk reads in front of that turn's answers: chunk
    and instruction in the chat template, up to the assistant's opening. None where they are not known or not read."""

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
    short_prompt_ids: tuple[Ids, ...] | None = None  # N int32 [P] arrays

    @property
    def turns(self) -> int:
        return len(self.chosen_spans)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of (trunk, chosen branch, rejected branch)."""
        return len(self.trunk_ids), len(self.chosen_ids), len(self.rejected_ids)

    def turn_alone(self, turn: int) -> "PairRecord":
        """Return a turn as a reference that sees only its chunk reads it: its short prompt, then its two answers.

        The NLL leaves the prompt out. The record must have short prompts.
        """
        assert self.short_prompt_ids is not None, f"document {self.doc_id!r} has no short prompts"
        prompt, answers = self.short_prompt_ids[turn], dict[str, Any]()
        for side in ("chosen", "rejected"):
            ids = getattr(self, f"{side}_ids")[slice(*getattr(self, f"{side}_spans")[turn])]
            answers[f"{side}_ids"], answers[f"{side}_spans"] = ids, np.array([[0, len(ids)]], np.int32)
            answers[f"ref_{side}_logps"] = getattr(self, f"ref_{side}_logps")[turn : turn + 1]
        ignored = np.array([[0, len(prompt)]], np.int32)
        return replace(
            self, trunk_ids=prompt, nll_ignore_spans=ignored, chunk_spans=None, short_prompt_ids=None, **answers
        )


def to_batch(record: PairRecord) -> pa.RecordBatch:
    """Return an Arrow record batch that holds one record."""
    columns = vars(record) | {"lengths": dict(zip(("trunk", "chosen", "rejected"), record.lengths, strict=True))}
    spans = {name: value.tolist() for name, value in columns.items() if name.endswith("spans") and value is not None}
    arrays = [pa.array([(columns | spans)[field.name]], field.type) for field in ARROW_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=ARROW_SCHEMA)


def from_batch(batch: pa.RecordBatch) -> PairRecord:
    """Return the record of a batch of any schema version; the arrays are read-only views of the mapped file.

    Optional columns that the batch lacks are None.
    """

    def value(name: str, kind: pa.DataType) -> Any:
        found = batch.column(name)[0]
        if kind == _ids:
            return found.values.to_numpy(zero_copy_only=True)
        if kind == _logps or (kind == _prompts and found.is_valid):
            return tuple(turn.values.to_numpy(zero_copy_only=True) for turn in found)
        if kind == _spans and found.is_valid:
            return found.values.flatten().to_numpy(zero_copy_only=True).reshape(-1, 2)
        return found.as_py()

    return PairRecord(
        **{field.name: value(field.name, field.type) for field in batch.schema if field.name != "lengths"}
    )


def validate_record(record: PairRecord, *, where: str = "", vocab_size: int | None = None) -> None:
    """Check one record's types, spans and sums.

    `where` (a file and a record index) goes in front of the message; with `vocab_size`, ids must be below it.
    Raises InputError if a field is wrong, and names it.
    """
    check = _Check(f"{where}, document {record.doc_id!r}" if where else f"document {record.doc_id!r}")
    check.that("doc_id", isinstance(record.doc_id, str) and record.doc_id != "", "must be a non-empty string")
    check.that("ref_context", record.ref_context in REF_CONTEXTS, f"must be one of {REF_CONTEXTS}")
    for name in ("trunk_ids", "chosen_ids", "rejected_ids"):
        _check_ids(check, name, getattr(record, name), vocab_size)
    _check_branch(check, "chosen", record.chosen_ids, record.chosen_spans, record.ref_chosen_logps)
    _check_branch(check, "rejected", record.rejected_ids, record.rejected_spans, record.ref_rejected_logps)
    check.that(
        "rejected_spans",
        len(record.rejected_spans) == len(record.chosen_spans),
        f"has {len(record.rejected_spans)} turns, but chosen_spans has {len(record.chosen_spans)}",
    )
    _check_ignored(check, record)
    _check_chunks(check, record)
    for turn, ids in enumerate(record.short_prompt_ids or (), start=1):
        _check_ids(check, SHORT_PROMPTS, ids, vocab_size, f" in turn {turn}")
    if record.short_prompt_ids is not None:
        found = len(record.short_prompt_ids)
        check.that(SHORT_PROMPTS, found == record.turns, f"has {found} turns, but there are {record.turns}")


class _Check:
    def __init__(self, where: str):
        self.where = where

    def that(self, field: str, holds: bool, message: str) -> None:
        if not holds:
            raise InputError(f"{self.where}: field {field!r} {message}; rebuild the shards with `longpo data pack`")


def _check_ids(check: _Check, name: str, ids: Ids, vocab_size: int | None, place: str = "") -> None:
    check.that(name, ids.dtype == np.int32 and ids.ndim == 1, f"must be a flat int32 array{place}")
    check.that(name, len(ids) > 0, f"is empty{place}")
    check.that(name, int(ids.min()) >= 0, f"holds the negative token id {int(ids.min())}{place}")
    if vocab_size is not None:
        top = int(ids.max())
        check.that(name, top < vocab_size, f"holds token id {top}{place}, outside the vocabulary of {vocab_size}")


def _check_spans(check: _Check, name: str, spans: Ids, length: int) -> None:
    check.that(name, spans.dtype == np.int32 and spans.ndim == 2 and spans.shape[1] == 2, "must be int32 [n, 2]")
    problem = spans_problem(spans.tolist(), length)
    check.that(name, not problem, problem)


def _check_branch(check: _Check, branch: str, ids: Ids, spans: Ids, logps: tuple[Logps, ...]) -> None:
    _check_spans(check, f"{branch}_spans", spans, len(ids))
    problem = branch_problem(spans.tolist(), branch, len(ids))
    check.that(f"{branch}_spans", not problem, problem)
    name = f"ref_{branch}_logps"
    check.that(name, len(logps) == len(spans), f"has {len(logps)} turns, but there are {len(spans)}")
    for turn, (values, (start, end)) in enumerate(zip(logps, spans, strict=True), start=1):
        check.that(name, values.dtype == np.float32 and values.ndim == 1, "must hold flat float32 arrays")
        count = f"has {len(values)} values in turn {turn}, but the response has {end - start} tokens"
        check.that(name, len(values) == end - start, count)
        valid = bool(np.isfinite(values).all() and (values <= LOGP_TOLERANCE).all())
        check.that(name, valid, f"holds a value in turn {turn} that is no log-probability")


def _check_ignored(check: _Check, record: PairRecord) -> None:
    trunk, chosen, _ = record.lengths
    _check_spans(check, "nll_ignore_spans", record.nll_ignore_spans, trunk + chosen)
    problem = ignored_problem(record.nll_ignore_spans.tolist(), record.chosen_spans.tolist(), trunk)
    check.that("nll_ignore_spans", not problem, problem)


def _check_chunks(check: _Check, record: PairRecord) -> None:
    """Chunks may overlap and be in any order; an empty one is not in the trunk."""
    spans = record.chunk_spans
    if spans is None:
        return
    check.that(
        "chunk_spans", spans.dtype == np.int32 and spans.ndim == 2 and spans.shape[1] == 2, "must be int32 [n, 2]"
    )
    check.that("chunk_spans", len(spans) == record.turns, f"has {len(spans)} turns, but there are {record.turns}")
    inside = (spans[:, 0] >= 0) & (spans[:, 0] <= spans[:, 1]) & (spans[:, 1] <= len(record.trunk_ids))
    check.that("chunk_spans", bool(inside.all()), f"must be spans inside the trunk's {len(record.trunk_ids)} tokens")


def spans_problem(spans: Sequence[Span], length: int) -> str:
    """Say what is wrong with spans that must be ordered, disjoint, not empty and inside `length` tokens; "" if nothing
    is."""
    edges = [edge for span in spans for edge in span]
    inside = not edges or (edges[0] >= 0 and edges[-1] <= length)
    ordered = all(start < end for start, end in spans) and all(end <= start for (_, end), (start, _) in pairwise(spans))
    return "" if inside and ordered else f"must be ordered, disjoint [start, end) inside {length} tokens"


def branch_problem(spans: Sequence[Span], branch: str, length: int) -> str:
    """Say what is wrong with the answers of a branch, which begins and ends with one; "" if nothing is."""
    if spans and spans[0][0] == 0 and spans[-1][1] == length:
        return ""
    return f"must start at 0 and end at {length}, the length of {branch}_ids; a branch begins and ends with an answer"


def ignored_problem(ignored: Sequence[Span], chosen: Sequence[Span], trunk: int) -> str:
    """Say whether the NLL would leave out a token of an answer; "" if it does not. `chosen` lies behind the trunk."""
    overlaps = any(start < trunk + to and trunk + at < end for start, end in ignored for at, to in chosen)
    return "covers an answer; leave answers out of it" if overlaps else ""


def spans_to_mask(spans: Ids, length: int) -> NDArray[np.bool_]:
    """Return boolean [length], true inside the spans ([n, 2], [start, end))."""
    mask = np.zeros(length, dtype=bool)
    for start, end in spans:
        mask[start:end] = True
    return mask
