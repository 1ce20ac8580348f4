"""What must hold in every record, checked before it is written and again by `inspect --verify`."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nemo_longpo.errors import InputError

from .schema import LOGP_TOLERANCE, REF_CONTEXTS, Ids, Logps, PairRecord, Span


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


class _Check:
    def __init__(self, where: str):
        self.where = where

    def that(self, field: str, holds: bool, message: str) -> None:
        if not holds:
            raise InputError(f"{self.where}: field {field!r} {message}; rebuild the shards with `longpo data pack`")


def _check_ids(check: _Check, name: str, ids: Ids, vocab_size: int | None) -> None:
    check.that(name, ids.dtype == np.int32 and ids.ndim == 1, "must be a flat int32 array")
    check.that(name, len(ids) > 0, "is empty")
    check.that(name, int(ids.min()) >= 0, f"holds the negative token id {int(ids.min())}")
    if vocab_size is not None:
        top = int(ids.max())
        check.that(name, top < vocab_size, f"holds token id {top}, outside the vocabulary of {vocab_size}")


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
    """Chunks may overlap and stand in any order; an empty one is not in the trunk."""
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
