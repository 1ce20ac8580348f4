"""Shards that a run cannot train on are refused before it starts, naming the setting and the directory."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from support.small_shards import PROVENANCE, make_record

from nemo_longpo.errors import InputError
from nemo_longpo.objective import WITH_PREFERENCE, LossType, Objective
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.requirements import Requirements
from nemo_longpo.shards.writer import ShardWriter

REQUIREMENTS = Requirements(vocabulary_rows=100, seq_length=16, positions=16, objective=Objective())


def check(directory, requirements: Requirements) -> None:
    reader = ShardReader(directory)
    requirements.check(reader, reader.lengths())


@pytest.fixture
def shards_of(tmp_path):
    def make(ref_context: str):
        directory = tmp_path / ref_context
        with ShardWriter(directory, replace(PROVENANCE, ref_context=ref_context)) as writer:
            for index in range(3):
                writer.add(make_record(index, ref_context=ref_context))
        return directory

    return make


@pytest.mark.parametrize("loss_type", get_args(LossType))
@pytest.mark.parametrize("ref_context", ["short", "long"])
def test_loss_and_reference_fit(shards_of, loss_type, ref_context):
    directory = shards_of(ref_context)
    needs_short = loss_type in ("longpo", "longpo_no_nll", "sft_chosen_constraint")
    refused = needs_short if ref_context == "long" else loss_type == "dpo"
    requirements = replace(REQUIREMENTS, objective=Objective(loss_type))
    if not refused:
        check(directory, requirements)
        return
    other = {"short": "long", "long": "short"}[ref_context]
    with pytest.raises(InputError, match=rf"loss_type={loss_type} .*{directory}.*--ref-context {other}.*sft_chosen"):
        check(directory, requirements)


@pytest.mark.parametrize("loss_type", WITH_PREFERENCE)
@pytest.mark.parametrize("ref_context", ["short", "long"])
def test_without_a_reference_any_shards_fit(shards_of, loss_type, ref_context):
    check(shards_of(ref_context), replace(REQUIREMENTS, objective=Objective(loss_type, reference_free=True)))


@pytest.mark.parametrize("preference", ["ipo", "hinge"])
def test_other_preferences_need_the_same_reference(shards_of, preference):
    check(shards_of("long"), replace(REQUIREMENTS, objective=Objective("dpo", preference=preference)))
    with pytest.raises(InputError, match=r"loss_type=longpo .*--ref-context short"):
        check(shards_of("long"), replace(REQUIREMENTS, objective=Objective(preference=preference)))


def test_vocabulary_larger_than_the_model(shards_of):
    with pytest.raises(InputError, match="short was written for a vocabulary of 100, but the model has 99 rows"):
        check(shards_of("short"), replace(REQUIREMENTS, vocabulary_rows=99))


@pytest.mark.parametrize("branches", [(2, 7), (7, 2)], ids=["rejected is longer", "chosen is longer"])
def test_the_longer_answer_counts(shards_of, branches):
    lengths = np.array([[10, 2, 2], [10, *branches], [10, 2, 2]])
    with pytest.raises(InputError, match=r"record 1.* has 17 tokens, more than data\.seq_length=16"):
        REQUIREMENTS.check(ShardReader(shards_of("short")), lengths)


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ({"seq_length": 13}, r"has 14 tokens, more than data\.seq_length=13"),
        ({"positions": 13}, r"has 14 tokens, and the model's configuration gives it 13 positions.*--max-length 14"),
    ],
)
def test_a_record_longer_than_run_or_model(shards_of, limit, sentence):
    directory = shards_of("short")
    check(directory, replace(REQUIREMENTS, seq_length=14, positions=14))
    check(directory, replace(REQUIREMENTS, positions=None))
    with pytest.raises(InputError, match=f"shard-00000.arrow, record 2, document 'document 2' {sentence}"):
        check(directory, replace(REQUIREMENTS, **limit))
