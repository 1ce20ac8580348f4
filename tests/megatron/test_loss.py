"""The sums of a pair, from log-probs that depend on a label and its position alone: the record says what they are."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import training_pairs

from nemo_longpo.megatron import loss
from nemo_longpo.objective import Objective
from nemo_longpo.parallel.layout import lay_out_pair

VOCABULARY = 50
TABLE = -4 * torch.rand(VOCABULARY, 100, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def answers(record, side, trunk=None):
    """The log-probs of every turn's answer: behind the document, or behind a short prompt of its own."""
    ids, found = record[side], []
    for turn, (start, end) in enumerate(record[f"{side}_spans"]):
        before = len(trunk) + start if trunk else len(record["short_prompts"][turn])
        found.append([TABLE[ids[place], before + place - start - 1].item() for place in range(start, end)])
    return found


@pytest.mark.parametrize("layout", ["shared_prefix", "concatenated"])
@pytest.mark.parametrize("loss_type", ["solopo", "sft_chosen_constraint"])
def test_sums_of_a_pair(alone, layout, loss_type):
    """The divergence is trained by one loss alone; a reference far below the policy, elsewhere, leaves it finite."""
    (pair,) = training_pairs.with_short_prompts(training_pairs.uneven_records(VOCABULARY)[1:2], VOCABULARY)
    far = tuple(np.full_like(turn, -2000) for turn in pair.ref_rejected_logps)
    pair = replace(pair, ref_rejected_logps=far)
    objective = Objective(loss_type)
    rows = lay_out_pair(pair, layout, short_prompts=objective.reads_short_prompts)
    positions = rows.position_ids.expand_as(rows.labels)
    logprobs = TABLE[rows.labels.clamp(0), positions].requires_grad_()
    sums = loss.sum_pair(logprobs, rows, objective, alone)

    record = training_pairs.plain_record(pair)
    trunk = record["trunk"]
    chosen, rejected = (answers(record, side, trunk) for side in ("chosen", "rejected"))
    ignored = {place for start, end in record["ignore_spans"] for place in range(start, end)}
    ids = trunk + record["chosen"]
    kept = [TABLE[ids[place], place - 1].item() for place in range(1, len(ids)) if place not in ignored]
    differences = np.concatenate(chosen) - np.concatenate(record["ref_chosen"])
    divergence = (np.exp(differences) - 1 - differences).sum()
    expected = {
        "chosen": math.fsum(map(sum, chosen)),
        "rejected": math.fsum(map(sum, rejected)),
        "ref_chosen": math.fsum(map(sum, record["ref_chosen"])),
        "ref_rejected": -2000 * sum(map(len, rejected)),
        "sequence": math.fsum(kept),
        "chosen_divergence": divergence if loss_type == "sft_chosen_constraint" else 0,
        "short_chosen": math.fsum(map(sum, answers(record, "chosen"))) if loss_type == "solopo" else 0,
        "short_rejected": math.fsum(map(sum, answers(record, "rejected"))) if loss_type == "solopo" else 0,
        "chosen_tokens": sum(map(len, chosen)),
        "rejected_tokens": sum(map(len, rejected)),
        "sequence_tokens": len(kept),
        "trunk_tokens": len(trunk),
    }
    assert {name: value.item() for name, value in vars(sums).items()} == pytest.approx(expected, rel=1e-6, abs=1e-12)
    sums.chosen_divergence.backward()
    assert logprobs.grad.isfinite().all()
