"""Where every token of a pair goes: rows, labels, masks and positions, for any context-parallel rank.

Pure functions of a record and `(cp_size, cp_rank)`: one process can check every rank's slice.

Shape legend: B sequences (chosen, rejected), S rows of the longer one after padding, R = S / cp_size rows of one rank.
"""

from dataclasses import dataclass, fields
from math import lcm

import numpy as np
import torch
from torch import Tensor

from nemo_longpo.logprobs import IGNORE_LABEL
from nemo_longpo.shards.schema import PairRecord


def zigzag_rows(length: int, cp_size: int, cp_rank: int) -> Tensor:
    """Row numbers that a rank holds of a causal sequence: chunks `r` and `2·cp − 1 − r` of `2·cp` equal ones.

    Megatron's context-parallel contract: every rank gets one early and one late chunk, so causal attention costs all
    ranks the same. `length` must be a multiple of `2·cp_size`, or anything if `cp_size` is 1.
    """
    if cp_size == 1:
        return torch.arange(length)
    assert length % (2 * cp_size) == 0, f"{length} rows do not split into 2 x {cp_size} chunks"
    chunks = torch.arange(length).view(2 * cp_size, -1)
    return torch.cat([chunks[cp_rank], chunks[2 * cp_size - 1 - cp_rank]])


def padded_length(length: int, cp_size: int, tp_size: int) -> int:
    """The smallest S ≥ `length` that splits into 2·cp chunks, with S / cp rows divisible by tp (sequence parallel)."""
    multiple = cp_size * lcm(2, tp_size) if cp_size > 1 else tp_size
    return -(-length // multiple) * multiple


@dataclass(frozen=True)
class PairRows:
    """One pair as rows that predict their labels. Labels are shifted already, so any selection of rows stays correct.

    `tokens`, `labels`, `position_ids` are int64 [B, S]; a label of `IGNORE_LABEL` is scored by nobody. The masks, fp32
    [B, S], say which rows' log-probs enter which sum: chosen and rejected responses, and the NLL of the chosen
    sequence. `ref_logps`, fp32 [B, S], are the reference's log-probs of the response labels, zero elsewhere. The counts
    (fp32 scalars) are those of the whole pair, on every rank; `pair_tokens` counts the trunk once and both branches.
    """

    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    chosen_mask: Tensor
    rejected_mask: Tensor
    nll_mask: Tensor
    ref_logps: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    sequence_tokens: Tensor
    pair_tokens: Tensor

    def on_rank(self, cp_size: int, cp_rank: int) -> "PairRows":
        """This context-parallel rank's rows [B, R]; the counts stay."""
        rows = zigzag_rows(self.tokens.shape[1], cp_size, cp_rank)
        return PairRows(**{name: value[:, rows] if value.ndim == 2 else value for name, value in self.items()})

    def to_device(self, device: torch.device | int) -> "PairRows":
        return PairRows(**{name: value.to(device, non_blocking=True) for name, value in self.items()})

    def items(self) -> list[tuple[str, Tensor]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def lay_out_concatenated(record: PairRecord, cp_size: int = 1, tp_size: int = 1) -> PairRows:
    """The `concatenated` layout: two full causal sequences, trunk + chosen and trunk + rejected, padded on the right.

    Row t of a sequence holds token t and predicts token t + 1, so a sequence of L tokens has L − 1 rows.
    """
    trunk = len(record.trunk_ids)
    longest = trunk + max(len(record.chosen_ids), len(record.rejected_ids)) - 1
    shape = (2, padded_length(longest, cp_size, tp_size))
    tokens, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    response_mask, ref_logps = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    nll_mask = np.zeros(shape, np.float32)

    sides = (
        (record.chosen_ids, record.chosen_spans, record.ref_chosen_logps),
        (record.rejected_ids, record.rejected_spans, record.ref_rejected_logps),
    )
    for side, (branch_ids, spans, turn_logps) in enumerate(sides):
        ids = np.concatenate([record.trunk_ids, branch_ids])
        tokens[side, : len(ids) - 1] = ids[:-1]
        labels[side, : len(ids) - 1] = ids[1:]
        for (start, end), logps in zip(spans, turn_logps, strict=True):
            rows = slice(trunk + start - 1, trunk + end - 1)
            response_mask[side, rows] = 1.0
            ref_logps[side, rows] = logps

    nll_mask[0, : trunk + len(record.chosen_ids) - 1] = 1.0
    for start, end in record.nll_ignore_spans:
        nll_mask[0, max(start - 1, 0) : max(end - 1, 0)] = 0.0
    labels[(response_mask == 0) & (nll_mask == 0)] = IGNORE_LABEL

    chosen_mask, rejected_mask = response_mask.copy(), response_mask.copy()
    chosen_mask[1], rejected_mask[0] = 0.0, 0.0
    return PairRows(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        position_ids=torch.arange(shape[1]).expand(shape).contiguous(),
        chosen_mask=torch.from_numpy(chosen_mask),
        rejected_mask=torch.from_numpy(rejected_mask),
        nll_mask=torch.from_numpy(nll_mask),
        ref_logps=torch.from_numpy(ref_logps),
        chosen_tokens=torch.tensor(chosen_mask.sum()),
        rejected_tokens=torch.tensor(rejected_mask.sum()),
        sequence_tokens=torch.tensor(nll_mask.sum()),
        pair_tokens=torch.tensor(float(trunk + len(record.chosen_ids) + len(record.rejected_ids))),
    )
