"""Rows of every context-parallel rank against literal lists, and against a construction token by token."""

from collections import Counter
from dataclasses import replace
from math import lcm
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from support import tiny_models as tiny, training_pairs as pairs
from support.laid_out_rows import Row, record_of, records, rows_over_ranks, rows_token_by_token, straddles

from nemo_longpo.logprobs import IGNORE_LABEL
from nemo_longpo.parallel.layout import PairRows, lay_out_pair, padded_length
from nemo_longpo.parallel.segments import Segments, local_slices
from nemo_longpo.placement import PairLayout

IGNORE = IGNORE_LABEL

layouts = pytest.mark.parametrize("layout", get_args(PairLayout))


@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 8))
def test_padded_length_is_the_smallest_that_splits(length, cp_size, tp_size):
    def splits(rows: int) -> bool:
        chunks = 2 * cp_size if cp_size > 1 else 1
        return rows % chunks == 0 and (rows // cp_size) % tp_size == 0

    found = padded_length(length, cp_size, tp_size)
    assert splits(found)
    assert not any(splits(rows) for rows in range(length, found))


TWO_TURNS = record_of(
    # BOS, marker, document, document, marker | answer, eot | marker, instruction, marker | answer, eot
    trunk=[1, 2, 10, 11, 3],
    chosen=[20, 9, 2, 12, 3, 21, 9],
    rejected=[30, 31, 9, 2, 12, 3, 9],
    chosen_spans=[[0, 2], [5, 7]],
    rejected_spans=[[0, 3], [6, 7]],
    ignore=[[0, 2], [4, 5], [7, 8], [9, 10]],
)


def test_rows_of_a_record():
    rows = lay_out_pair(TWO_TURNS, "concatenated")
    assert rows.tokens.tolist() == [
        [1, 2, 10, 11, 3, 20, 9, 2, 12, 3, 21],
        [1, 2, 10, 11, 3, 30, 31, 9, 2, 12, 3],
    ]
    assert rows.labels.tolist() == [
        [IGNORE, 10, 11, IGNORE, 20, 9, IGNORE, 12, IGNORE, 21, 9],
        [IGNORE, IGNORE, IGNORE, IGNORE, 30, 31, 9, IGNORE, IGNORE, IGNORE, 9],
    ]
    assert rows.position_ids.tolist() == [list(range(11))] * 2
    assert rows.chosen_mask.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1], [0] * 11]
    assert rows.rejected_mask.tolist() == [[0] * 11, [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1]]
    assert rows.nll_mask.tolist() == [[0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1], [0] * 11]
    assert rows.ref_logps.tolist() == [
        [0, 0, 0, 0, -0.5, -1.0, 0, 0, 0, -1.5, -2.0],
        [0, 0, 0, 0, -0.5, -1.0, -1.5, 0, 0, 0, -2.0],
    ]
    assert [rows.chosen_tokens, rows.rejected_tokens, rows.sequence_tokens, rows.pair_tokens] == [4, 4, 7, 19]


def _rows_of(rows: PairRows) -> dict[str, torch.Tensor]:
    return {name: value for name, value in rows.tensors().items() if value.ndim == 2}


def test_shared_prefix_rows():
    """Four shared rows; then both branches begin with the trunk's last token, which predicts their first."""
    rows = lay_out_pair(TWO_TURNS, "shared_prefix")
    assert rows.trees == (Segments(trunk_rows=4, trunk_tokens=4, branch_rows=(7, 7)),)
    parts = {name: [part[0].tolist() for part in value.split((4, 7, 7), 1)] for name, value in _rows_of(rows).items()}
    assert parts == {
        "tokens": [[1, 2, 10, 11], [3, 20, 9, 2, 12, 3, 21], [3, 30, 31, 9, 2, 12, 3]],
        "labels": [
            [IGNORE, 10, 11, IGNORE],
            [20, 9, IGNORE, 12, IGNORE, 21, 9],
            [30, 31, 9, IGNORE, IGNORE, IGNORE, 9],
        ],
        "position_ids": [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [4, 5, 6, 7, 8, 9, 10]],
        "chosen_mask": [[0] * 4, [1, 1, 0, 0, 0, 1, 1], [0] * 7],
        "rejected_mask": [[0] * 4, [0] * 7, [1, 1, 1, 0, 0, 0, 1]],
        "nll_mask": [[0, 1, 1, 0], [1, 1, 0, 1, 0, 1, 1], [0] * 7],
        "ref_logps": [[0] * 4, [-0.5, -1.0, 0, 0, 0, -1.5, -2.0], [-0.5, -1.0, -1.5, 0, 0, 0, -2.0]],
    }
    assert [rows.chosen_tokens, rows.rejected_tokens, rows.sequence_tokens, rows.pair_tokens] == [4, 4, 7, 19]


@pytest.mark.parametrize(
    ("cp_size", "tp_size", "branch_rows", "tokens", "position_ids"),
    [
        pytest.param(
            2,
            1,
            (7, 7),
            [[1, 11, 3, 20, 9, 2, 12, 3, 21], [2, 10, 3, 30, 31, 9, 2, 12, 3]],
            [[0, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 4, 5, 6, 7, 8, 9, 10]],
            id="cp 2",
        ),
        pytest.param(
            2,
            2,
            (7, 9),
            [[1, 11, 3, 20, 9, 2, 12, 3, 21, 3], [2, 10, 30, 31, 9, 2, 12, 3, 0, 0]],
            [[0, 3, 4, 5, 6, 7, 8, 9, 10, 4], [1, 2, 5, 6, 7, 8, 9, 10, 11, 12]],
            id="cp 2, tp 2: nine rows a rank become ten",
        ),
        pytest.param(
            4,
            1,
            (7, 9),
            [[1, 0, 3, 20, 9, 2], [2, 0, 12, 3, 21, 3], [10, 0, 30, 31, 9, 2], [11, 0, 12, 3, 0, 0]],
            [[0, 7, 4, 5, 6, 7], [1, 6, 8, 9, 10, 4], [2, 5, 5, 6, 7, 8], [3, 4, 9, 10, 11, 12]],
            id="cp 4: the trunk is shorter than 8 rows",
        ),
    ],
)
def test_shared_prefix_rows_on_every_rank(cp_size, tp_size, branch_rows, tokens, position_ids):
    rows = lay_out_pair(TWO_TURNS, "shared_prefix", cp_size, tp_size)
    assert rows.trees == (Segments(8 if cp_size == 4 else 4, 4, branch_rows),)
    local = [rows.on_rank(cp_size, rank) for rank in range(cp_size)]
    assert [share.tokens[0].tolist() for share in local] == tokens
    assert [share.position_ids[0].tolist() for share in local] == position_ids
    assert all(share.trees == rows.trees for share in local)


@pytest.mark.parametrize(("cp_size", "trunk_rows"), [(1, 1), (2, 4)])
def test_trunk_of_one_token(cp_size, trunk_rows):
    """That token begins both branches; the trunk is rows of padding, because nothing runs on an empty sequence."""
    record = record_of(trunk=[5], chosen=[6, 7], rejected=[8], chosen_spans=[[0, 2]], rejected_spans=[[0, 1]])
    rows = lay_out_pair(record, "shared_prefix", cp_size)
    assert rows.trees == (Segments(trunk_rows, 0, (2, 1 if cp_size == 1 else 2)),)
    assert rows.tokens[0, trunk_rows : trunk_rows + 3].tolist() == [5, 6, 5]
    assert rows.labels[0, trunk_rows : trunk_rows + 3].tolist() == [6, 7, 8]
    assert rows.position_ids[0, trunk_rows : trunk_rows + 3].tolist() == [0, 1, 0]
    assert (rows.labels[0, :trunk_rows] == IGNORE).all()


SHORT = replace(TWO_TURNS, short_prompt_ids=(np.array([1, 2, 11, 3], np.int32), np.array([3], np.int32)))


def test_short_prompts_stand_behind_the_document():
    """Each with its own turn's answers, and positions from 0."""
    rows = lay_out_pair(SHORT, "shared_prefix", short_prompts=True)
    first, second = Segments(3, 3, (2, 3)), Segments(1, 0, (2, 1))
    assert rows.trees == (Segments(4, 4, (7, 7)), first, second)
    assert rows.lengths == ((5, 7, 7), (4, 2, 3), (1, 2, 1))
    behind = {name: value[0, 18:].tolist() for name, value in _rows_of(rows).items()}
    assert behind == {
        "tokens": [1, 2, 11, 3, 20, 3, 30, 31, 0, 3, 21, 3],
        "labels": [IGNORE, IGNORE, IGNORE, 20, 9, 30, 31, 9, IGNORE, 21, 9, 9],
        "position_ids": [0, 1, 2, 3, 4, 3, 4, 5, 0, 0, 1, 0],
        "chosen_mask": [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0],
        "rejected_mask": [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1],
        "nll_mask": [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0],
        "ref_logps": [0, 0, 0, -0.5, -1.0, -0.5, -1.0, -1.5, 0, -1.5, -2.0, -2.0],
    }
    assert [rows.chosen_tokens, rows.rejected_tokens, rows.sequence_tokens, rows.pair_tokens] == [4, 4, 7, 19 + 13]


@layouts
def test_short_prompts_are_laid_out_on_demand_only(layout):
    for name, value in lay_out_pair(SHORT, layout).tensors().items():
        assert torch.equal(value, getattr(lay_out_pair(TWO_TURNS, layout), name)), name
    with pytest.raises(AssertionError, match="document 'doc' has no short prompts"):
        lay_out_pair(TWO_TURNS, layout, short_prompts=True)


@layouts
def test_types_are_those_the_model_takes(layout):
    rows = lay_out_pair(TWO_TURNS, layout)
    whole = {"tokens", "labels", "position_ids"}
    assert {name: value.dtype for name, value in rows.tensors().items()} == {
        name: torch.int64 if name in whole else torch.float32 for name, _ in rows.tensors().items()
    }


CROSSING = record_of(
    trunk=[50, 51, 52],
    chosen=[*range(100, 105), 60, 61, *range(110, 116)],
    rejected=[200, 60, 61, 201],
    chosen_spans=[[0, 5], [7, 13]],
    rejected_spans=[[0, 1], [3, 4]],
)


def test_turn_across_a_boundary_keeps_tokens():
    """Of 16 rows, 0–3 and 12–15 are rank 0's: row 3 predicts a token that rank 1 holds, row 11 one of rank 0."""
    first, second = (lay_out_pair(CROSSING, "concatenated", cp_size=2).on_rank(2, rank) for rank in range(2))
    assert first.tokens[0].tolist() == [50, 51, 52, 100, 112, 113, 114, 0]
    assert first.labels[0].tolist() == [51, 52, 100, 101, 113, 114, 115, IGNORE]
    assert second.tokens[0].tolist() == [101, 102, 103, 104, 60, 61, 110, 111]
    assert second.labels[0].tolist() == [102, 103, 104, 60, 61, 110, 111, 112]
    assert first.chosen_mask[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0]
    assert second.chosen_mask[0].tolist() == [1, 1, 1, 0, 0, 1, 1, 1]
    turns = first.ref_logps[0].sum() + second.ref_logps[0].sum()
    assert turns == sum(-0.5 * place for place in range(1, 12))


cp_sizes = st.sampled_from([1, 2, 3, 4, 8])
tp_sizes = st.sampled_from([1, 2, 3, 4])


@layouts
@settings(max_examples=60, deadline=None)
@given(records(), cp_sizes, tp_sizes)
def test_ranks_together_hold_the_record(layout, record, cp_size, tp_size):
    found, expected = rows_over_ranks(record, layout, cp_size, tp_size), rows_token_by_token(record, layout)
    for key, row in expected.items():
        assert found.pop(key) == row, key
    # What is left pads the sequences: nobody scores it, and it enters no sum.
    assert set(found.values()) <= {Row(0, IGNORE, 0.0, 0.0, 0.0, 0.0)}
    multiple = 2 * lcm(cp_size, tp_size) * cp_size
    assert len(found) < 2 * (multiple + max(record.lengths[1:])), "padding stays small"


@settings(max_examples=60, deadline=None)
@given(records(), cp_sizes, tp_sizes)
def test_both_layouts_score_the_same(record, cp_size, tp_size):
    """Side, position, token, label, masks and reference of every scored row; sharing rows loses and doubles none."""
    scored = [
        Counter((key, row) for key, row in rows_over_ranks(record, layout, cp_size, tp_size).items() if row.label >= 0)
        for layout in get_args(PairLayout)
    ]
    assert scored[0] == scored[1]
    trunk, chosen, rejected = record.lengths
    assert lay_out_pair(record, "shared_prefix").tokens.numel() == max(trunk - 1, 1) + chosen + rejected


@layouts
@settings(max_examples=60, deadline=None)
@given(records(), st.data(), cp_sizes, tp_sizes)
def test_each_tree_is_laid_out_as_if_alone(layout, record, data, cp_size, tp_size):
    """The document's rows are those without short prompts; a turn's, those of a pair with nothing else in it."""
    lengths = [data.draw(st.integers(1, 20)) for _ in range(record.turns)]
    prompts = [np.arange(1000 * turn, 1000 * turn + length, dtype=np.int32) for turn, length in enumerate(lengths, 1)]
    parts = [record]
    for turn, prompt in enumerate(prompts):
        chosen, rejected = (slice(*spans[turn]) for spans in (record.chosen_spans, record.rejected_spans))
        alone = record_of(
            trunk=prompt,
            chosen=record.chosen_ids[chosen],
            rejected=record.rejected_ids[rejected],
            chosen_spans=[[0, chosen.stop - chosen.start]],
            rejected_spans=[[0, rejected.stop - rejected.start]],
            ignore=[[0, len(prompt)]],
        )
        logps = {name: (getattr(record, name)[turn],) for name in ("ref_chosen_logps", "ref_rejected_logps")}
        parts.append(replace(alone, **logps))
    rows = lay_out_pair(replace(record, short_prompt_ids=tuple(prompts)), layout, cp_size, tp_size, short_prompts=True)
    expected = [lay_out_pair(part, layout, cp_size, tp_size) for part in parts]
    assert rows.trees == tuple(tree for part in expected for tree in part.trees)
    for rank in range(cp_size):
        found = _rows_of(rows.on_rank(cp_size, rank))
        for part, where in zip(expected, local_slices(rows.trees, cp_size), strict=True):
            for name, value in _rows_of(part.on_rank(cp_size, rank)).items():
                assert torch.equal(found[name][:, where], value), name
        assert found["tokens"].shape[1] % tp_size == 0


@layouts
@settings(max_examples=60, deadline=None)
@given(records(), cp_sizes, tp_sizes)
def test_every_rank_has_whole_pair_counts(layout, record, cp_size, tp_size):
    trunk, chosen, rejected = record.lengths
    ignored = sum(end - max(start, 1) for start, end in record.nll_ignore_spans.tolist())
    rows = lay_out_pair(record, layout, cp_size, tp_size)
    for local in (rows.on_rank(cp_size, rank) for rank in range(cp_size)):
        assert local.chosen_tokens == sum(end - start for start, end in record.chosen_spans.tolist())
        assert local.rejected_tokens == sum(end - start for start, end in record.rejected_spans.tolist())
        assert local.sequence_tokens == trunk + chosen - 1 - ignored
        assert local.pair_tokens == trunk + chosen + rejected


@layouts
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 60), st.integers(1, 4), cp_sizes, tp_sizes)
def test_masks_select_exactly_the_response_tokens(layout, seed, trunk, turns, cp_size, tp_size):
    """On the records that the training tests use."""
    record = pairs.random_record(np.random.default_rng(seed), vocab_size=50, trunk=trunk, turns=turns)
    rows = rows_over_ranks(record, layout, cp_size, tp_size)
    for side, (ids, spans) in enumerate(
        ((record.chosen_ids, record.chosen_spans), (record.rejected_ids, record.rejected_spans))
    ):
        selected = [row.label for (s, _), row in sorted(rows.items()) if s == side and (row.chosen, row.rejected)[side]]
        assert selected == [token for start, end in spans for token in ids[start:end].tolist()]


def test_straddles_is_no_constant():
    assert straddles(CROSSING, "concatenated", 2)
    assert not straddles(TWO_TURNS, "concatenated", 2)
    assert not straddles(CROSSING, "concatenated", 1)
    assert straddles(CROSSING, "shared_prefix", 2)
    assert not straddles(TWO_TURNS, "shared_prefix", 2)


@layouts
@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_training_pairs_cross_a_boundary(family, layout):
    vocab_size = tiny.tiny_model(family, tiny.tiny_tokenizer(tiny.DEFAULT_STYLE[family])).config.vocab_size
    assert any(straddles(record, layout, 2) for record in pairs.uneven_records(vocab_size))
