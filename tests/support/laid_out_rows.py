"""Records for tests of the layout, the rows that all ranks have of one, and the same rows token by token."""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from nemo_longpo.logprobs import IGNORE_LABEL as IGNORE
from nemo_longpo.parallel.layout import PairRows, lay_out_pair
from nemo_longpo.parallel.segments import rows_on_rank
from nemo_longpo.placement import PairLayout
from nemo_longpo.shards.schema import PairRecord, validate_record


def record_of(trunk, chosen, rejected, chosen_spans, rejected_spans, ignore=()) -> PairRecord:
    """A valid record of plain lists; the reference's log-probs are −0.5, −1, −1.5, … along each branch's responses."""

    def logps(spans):
        values = iter(np.arange(1, 1000, dtype=np.float32) * np.float32(-0.5))
        return tuple(np.array([next(values) for _ in range(start, end)], np.float32) for start, end in spans)

    record = PairRecord(
        doc_id="doc",
        trunk_ids=np.array(trunk, np.int32),
        chosen_ids=np.array(chosen, np.int32),
        rejected_ids=np.array(rejected, np.int32),
        chosen_spans=np.array(chosen_spans, np.int32).reshape(-1, 2),
        rejected_spans=np.array(rejected_spans, np.int32).reshape(-1, 2),
        nll_ignore_spans=np.array(ignore, np.int32).reshape(-1, 2),
        ref_chosen_logps=logps(chosen_spans),
        ref_rejected_logps=logps(rejected_spans),
        ref_context="short",
    )
    validate_record(record)
    return record


class Row(NamedTuple):
    """The content of one row; its key is (0 chosen or 1 rejected, position)."""

    token: int
    label: int
    chosen: float
    rejected: float
    nll: float
    ref_logp: float


def rows_over_ranks(record: PairRecord, layout: PairLayout, cp_size: int, tp_size: int) -> dict[tuple[int, int], Row]:
    """Every rank's rows under their (side, position); a row that two ranks hold is an error.

    Rows of a shared trunk belong to the chosen side, and its padding to side 2.
    """
    whole = lay_out_pair(record, layout, cp_size, tp_size)
    sides = sides_of_rows(whole)
    found: dict[tuple[int, int], Row] = {}
    for rank in range(cp_size):
        local = whole.on_rank(cp_size, rank)
        assert local.tokens.shape[1] * cp_size == whole.tokens.shape[1], "ranks hold equal shares"
        assert local.tokens.shape[1] % tp_size == 0, "the share splits over sequence-parallel ranks"
        numbers = rows_on_rank(whole.trees, cp_size, rank).tolist()
        for sequence, (column, number) in ((s, n) for s in range(len(sides)) for n in enumerate(numbers)):
            key = sides[sequence][number], int(local.position_ids[sequence, column])
            assert key not in found, "held twice"
            found[key] = Row._make(value[sequence, column].item() for value in _per_row(local))
    return found


def sides_of_rows(rows: PairRows) -> list[list[int]]:
    """For every row of every sequence: 0 chosen, 1 rejected, 2 padding between them."""
    (segments,), count = rows.trees, rows.tokens.shape[1]
    if not segments.branch_rows:
        return [[0] * count, [1] * count]
    chosen, rejected = segments.branch_rows
    padding = segments.trunk_rows - segments.trunk_tokens
    return [[0] * segments.trunk_tokens + [2] * padding + [0] * chosen + [1] * rejected]


def _per_row(rows: PairRows) -> tuple[torch.Tensor, ...]:
    return rows.tokens, rows.labels, rows.chosen_mask, rows.rejected_mask, rows.nll_mask, rows.ref_logps


def rows_token_by_token(record: PairRecord, layout: PairLayout) -> dict[tuple[int, int], Row]:
    """Build the same rows token by token: walk both sequences and find the row that predicts each token.

    Behind a shared prefix, the rejected side begins with the row of the trunk's last token.
    """
    trunk = record.trunk_ids.tolist()
    ignored = {place for start, end in record.nll_ignore_spans.tolist() for place in range(start, end)}
    sides = (
        (record.chosen_ids, record.chosen_spans, record.ref_chosen_logps),
        (record.rejected_ids, record.rejected_spans, record.ref_rejected_logps),
    )
    expected = {}
    for side, (branch, spans, turns) in enumerate(sides):
        sequence = trunk + branch.tolist()
        ref_logps: dict[int, float] = {}
        for (start, end), turn in zip(spans.tolist(), turns, strict=True):
            ref_logps |= dict(zip(range(len(trunk) + start, len(trunk) + end), turn.tolist(), strict=True))
        shared = len(trunk) - 1 if layout == "shared_prefix" and side == 1 else 0
        for place in range(1 + shared, len(sequence)):
            is_response, is_nll = place in ref_logps, side == 0 and place not in ignored
            expected[side, place - 1] = Row(
                token=sequence[place - 1],
                label=sequence[place] if is_response or is_nll else IGNORE,
                chosen=float(is_response and side == 0),
                rejected=float(is_response and side == 1),
                nll=float(is_nll),
                ref_logp=ref_logps.get(place, 0.0),
            )
    return expected


@st.composite
def records(draw) -> PairRecord:
    """Valid records of 1 to 4 turns. All token ids differ; tokens outside responses are ignored at random."""
    responses_and_gaps = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12)), min_size=1, max_size=4)
    chosen_sizes = draw(responses_and_gaps)
    lengths = [draw(st.integers(1, 12)) for _ in chosen_sizes]
    rejected_sizes = [(gap, length) for (gap, _), length in zip(chosen_sizes, lengths, strict=True)]
    trunk = draw(st.integers(1, 40))
    chosen_spans, rejected_spans = _spans(chosen_sizes), _spans(rejected_sizes)
    chosen, rejected = chosen_spans[-1][1], rejected_spans[-1][1]
    responses = {trunk + place for start, end in chosen_spans for place in range(start, end)}
    others = [place for place in range(trunk + chosen) if place not in responses]
    ids = np.arange(1, 1 + trunk + chosen + rejected)
    return record_of(
        trunk=ids[:trunk],
        chosen=ids[trunk : trunk + chosen],
        rejected=ids[trunk + chosen :],
        chosen_spans=chosen_spans,
        rejected_spans=rejected_spans,
        ignore=[[place, place + 1] for place in others if draw(st.booleans())],
    )


def _spans(sizes: list[tuple[int, int]]) -> list[list[int]]:
    """[start, end) of each response; the first begins the branch, later ones come after their gap."""
    spans, place = [], 0
    for turn, (gap, length) in enumerate(sizes):
        start = place + (gap if turn else 0)
        place = start + length
        spans.append([start, place])
    return spans


def straddles(record: PairRecord, layout: PairLayout, cp_size: int) -> bool:
    """Whether the rows that predict one response belong to more than one rank."""
    rows = lay_out_pair(record, layout, cp_size)
    sides = sides_of_rows(rows)
    owner = {}
    for rank in range(cp_size):
        for number in rows_on_rank(rows.trees, cp_size, rank).tolist():
            for sequence in range(len(sides)):
                owner[sides[sequence][number], int(rows.position_ids[sequence, number])] = rank
    first = len(record.trunk_ids) - 1
    return any(
        len({owner[side, first + place] for place in range(start, end)}) > 1
        for side, spans in enumerate((record.chosen_spans, record.rejected_spans))
        for start, end in spans.tolist()
    )
