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

PROMPTS = tuple(np.arange(tokens, dtype=np.int32) for tokens in (5, 3))
REQUIREMENTS = Requirements(vocabulary_rows=100, seq_length=16, positions=16, objective=Objective())


def check(directory, requirements: Requirements) -> None:
    reader = ShardReader(directory)
    requirements.check(reader, reader.lengths(), reader.short_lengths())


@pytest.fixture
def shards_of(tmp_path):
    def make(ref_context: str, *prompts: tuple | None):
        """Three records with the given short prompts, by default with those of PROMPTS each."""
        directory = tmp_path / ref_context
        with ShardWriter(directory, replace(PROVENANCE, ref_context=ref_context)) as writer:
            for index, ids in enumerate(prompts or [PROMPTS] * 3):
                writer.add(make_record(index, ref_context=ref_context, short_prompt_ids=ids))
        return directory

    return make


@pytest.mark.parametrize("loss_type", get_args(LossType))
@pytest.mark.parametrize("ref_context", ["short", "long"])
def test_loss_and_reference_fit(shards_of, loss_type, ref_context):
    directory = shards_of(ref_context)
    needs_short = loss_type in ("longpo", "longpo_no_nll", "sft_chosen_constraint", "solopo")
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


SOLOPO = replace(REQUIREMENTS, objective=Objective("solopo"))


def test_short_prompts_are_needed_where_the_objective_reads_them(shards_of):
    directory = shards_of("short", PROMPTS, None, PROMPTS)
    check(directory, REQUIREMENTS)
    with pytest.raises(InputError, match=r"loss_type=solopo trains .*, record 1, document 'document 1' has none; pack"):
        check(directory, SOLOPO)


def test_short_prompts_that_are_not_read_are_missing(shards_of):
    reader = ShardReader(shards_of("short"), short_prompts=False)
    assert reader.short_lengths() == [[], [], []]
    with pytest.raises(InputError, match="record 0, document 'document 0' has none"):
        SOLOPO.check(reader, reader.lengths(), reader.short_lengths())


def test_lengths_of_short_prompts_and_their_answers(shards_of):
    reader = ShardReader(shards_of("short"))
    answers = [
        [(a[1] - a[0], b[1] - b[0]) for a, b in zip(r.chosen_spans, r.rejected_spans, strict=True)] for r in reader
    ]
    assert reader.short_lengths() == [[(5, *first), (3, *second)] for first, second in answers]


@pytest.mark.parametrize("answers", [(2, 7), (7, 2)], ids=["rejected is longer", "chosen is longer"])
def test_the_longer_answer_of_a_short_prompt_counts(shards_of, answers):
    reader = ShardReader(shards_of("short"))
    short = [[(10, 2, 2)], [(1, 1, 1), (10, *answers)], [(10, 2, 2)]]
    with pytest.raises(InputError, match=r"record 1.* has 17 tokens in a short prompt and its answer, more than"):
        SOLOPO.check(reader, reader.lengths(), short)


def test_a_short_prompt_longer_than_the_run(shards_of):
    long = (PROMPTS[0], np.arange(40, dtype=np.int32))
    directory = shards_of("short", PROMPTS, long, PROMPTS)
    reader = ShardReader(directory)
    longest = 40 + max(reader.short_lengths()[1][1][1:])
    check(directory, REQUIREMENTS)
    check(directory, replace(SOLOPO, seq_length=longest, positions=longest))
    with pytest.raises(InputError, match=rf"record 1, .* has {longest} tokens in a short prompt and its answer, more"):
        check(directory, replace(SOLOPO, seq_length=longest - 1))
    with pytest.raises(
        InputError, match=rf"has {longest} tokens in a short prompt .* gives it {longest - 1} positions"
    ):
        check(directory, replace(SOLOPO, seq_length=longest, positions=longest - 1))
