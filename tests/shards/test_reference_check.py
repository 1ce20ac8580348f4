"""What a run compares at its start with the stored reference log-probs, and how its ranks' sums become figures."""

import re
from dataclasses import replace

import numpy as np
import pytest
from support.small_shards import PROVENANCE, make_record, write

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import LinearScaling, RopeSettings, YarnScaling
from nemo_longpo.shards import reference_check
from nemo_longpo.shards.manifest import ReferenceModel
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.schema import validate_record
from nemo_longpo.shards.writer import ShardWriter

LINEAR = {"type": "linear", "factor": 2.0}


def prompts(*lengths: int) -> tuple[np.ndarray, ...]:
    return tuple(np.arange(50, 50 + length, dtype=np.int32) for length in lengths)


@pytest.fixture
def reader(tmp_path):
    records = [make_record(index, short_prompt_ids=prompts(9 - index, 6)) for index in range(5)]
    write(tmp_path / "shards", *records, make_record(5))
    return ShardReader(tmp_path / "shards")


def test_shortest_turns_behind_their_prompts(reader):
    pairs = reference_check.samples(reader, 2, 100)
    assert [(pair.doc_id, len(pair.trunk_ids)) for pair in pairs] == [("document 4", 5), ("document 3", 6)]
    first, second = pairs
    assert (first.chosen_ids.tolist(), first.rejected_ids.tolist()) == ([10, 11], [20])
    assert [turn.tolist() for turn in second.ref_chosen_logps] == [[-0.5, -0.5]]
    later = reference_check.samples(reader, 9, 100)[2]
    assert (later.doc_id, later.chosen_ids.tolist(), later.rejected_ids.tolist()) == (
        "document 0",
        [14, 15, 16],
        [23, 24],
    )
    assert [turn.tolist() for turn in later.ref_rejected_logps] == [[-2.5, -2.5]]
    for pair in pairs:
        validate_record(pair)


def test_long_ones_and_those_without_prompt_are_left_out(reader):
    assert [pair.doc_id for pair in reference_check.samples(reader, 9, 8)] == ["document 4", "document 3"]
    assert reference_check.samples(reader, 9, 6) == []
    without = ShardReader(reader.directory, short_prompts=False)
    assert reference_check.samples(without, 9, 100) == []


def test_long_references_are_compared_in_the_whole_document(tmp_path):
    with ShardWriter(tmp_path / "shards", replace(PROVENANCE, ref_context="long")) as writer:
        for index in range(2):
            writer.add(make_record(index, ref_context="long", short_prompt_ids=prompts(3, 3)))
    (pair,) = reference_check.samples(ShardReader(tmp_path / "shards"), 1, 100)
    assert (pair.turns, pair.trunk_ids.tolist()) == (2, [0, 1, 2, 3, 4])


def test_figures_over_ranks():
    """Two context-parallel ranks with parts of two pairs, one of another pipeline stage, and a copy of the first."""
    pairs = [make_record(0), make_record(1)]
    first, second, none = [[3, 0.3, 0.2], [4, 2.0, 0.6]], [[5, 0.5, 0.4], [0, 0.0, 0.0]], [[0.0] * 3] * 2
    found = reference_check.deviation(pairs, np.array([first, second, none]))
    assert found.tokens == (8, 8)
    assert found.means == (pytest.approx(0.1), pytest.approx(0.5))
    assert (found.mean, found.max) == (pytest.approx(0.3), 0.6)
    assert found.worst == "document 1"
    assert (
        "16 answer tokens of 2 document(s) by 0.3 on average and 0.6 at most (the most in document 'document 1')"
        in (str(found))
    )
    copied = reference_check.deviation(pairs, np.array([first, second] * 2))
    assert copied == found


def test_a_log_prob_that_is_no_number_is_no_match():
    found = reference_check.deviation(
        [make_record(0), make_record(1)], np.array([[[3, 0.3, 0.2], [4, np.nan, np.nan]], [[0, 0, 0], [0, 0, 0]]])
    )
    assert not found.mean <= 1e9
    assert np.isnan(found.max)
    assert found.worst == "document 1"


@pytest.mark.parametrize(
    ("dtypes", "allowed"),
    [
        (("float32", "float32"), 1e-3),
        (("bfloat16", "float32"), 1e-1),
        (("float16", "bfloat16"), 1e-1),
        (("float32", "float16"), 2e-2),
        (("float32", "float8_e4m3fn"), 1e-1),
    ],
)
def test_coarsest_dtype_counts(dtypes, allowed):
    assert reference_check.allowed_mean(*dtypes) == allowed


PLAIN, YARN = RopeSettings(1e4), YarnScaling(factor=4.0, original_max_position_embeddings=64)


@pytest.mark.parametrize(
    ("recorded", "policy", "reference"),
    [
        ({"rope_theta": 1e4}, PLAIN, PLAIN),
        ({"rope_theta": 1e4, "max_position_embeddings": 64}, PLAIN, PLAIN),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, PLAIN, RopeSettings(5e5)),
        ({"rope_theta": 1e6}, RopeSettings(1e7), RopeSettings(1e6)),
        ({"rope_theta": 1e4}, RopeSettings(1e4, LinearScaling(2.0)), PLAIN),
        ({"rope_theta": 1e4, "rope_scaling": LINEAR}, PLAIN, RopeSettings(1e4, LinearScaling(2.0))),
    ],
)
def test_rope_of_the_reference(reader, recorded, policy, reference):
    manifest = replace(reader.manifest, reference=ReferenceModel("c" * 64, recorded, "float32"))
    assert reference_check.reference_rope(manifest, policy) == reference


@pytest.mark.parametrize(
    ("recorded", "policy", "said"),
    [
        ({}, PLAIN, "the shards do not record the reference's RoPE"),
        ({"rope_theta": 1e4, "rope_scaling": LINEAR | {"type": "dynamic"}}, PLAIN, "not trained here"),
        ({"rope_theta": 1e4}, RopeSettings(1e4, YARN), "multiplies queries and keys by 1, and the policy's by 1.13863"),
    ],
)
def test_rope_that_the_policy_cannot_take_on(reader, recorded, policy, said):
    manifest = replace(reader.manifest, reference=ReferenceModel("c" * 64, recorded, "float32"))
    with pytest.raises(InputError, match=re.escape(said)):
        reference_check.reference_rope(manifest, policy)
