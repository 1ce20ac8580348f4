"""Lay out the tokens of a pair: rows, labels, masks and positions, for any context-parallel rank.

Pure functions of a record and the parallel sizes: one process can check every rank's slice.

Shape legend: B sequences, S rows of one, padding included, R = S / cp_size rows of one rank.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import chain
from math import lcm
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_longpo.logprobs import IGNORE_LABEL
from nemo_longpo.placement import PairLayout
from nemo_longpo.shards.schema import PairRecord

from .segments import Segments, rows_on_rank

Array = NDArray[Any]
_ROW = np.dtype(
    [
        ("tokens", np.int64),
        ("labels", np.int64),
        ("position_ids", np.int64),
        ("chosen_mask", np.float32),
        ("rejected_mask", np.float32),
        ("nll_mask", np.float32),
        ("ref_logps", np.float32),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """One pair as rows that predict their labels. Labels are shifted already, so any selection of rows stays correct.

    The rows are those of the document with both answers and then, where they are wanted, those of each turn's short
    prompt with that turn's two answers. `trees` says which rows may attend to which, one for the document and one for
    each short prompt; `lengths` has the tokens of trunk, chosen and rejected of each.

    `tokens`, `labels`, `position_ids` are int64 [B, S]; labels of `IGNORE_LABEL` are not scored; all sequences have the
    same positions, which begin anew in each tree. The masks, fp32 [B, S], select the rows whose log-probs enter each
    sum: chosen and rejected responses, and the NLL of each tree's chosen sequence. `ref_logps`, fp32 [B, S], are the
    reference's log-probs of the response labels, zero elsewhere. The counts (fp32 scalars) are of the document's tree,
    the same on every rank. `doc_id` names the pair.
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
    lengths: tuple[tuple[int, int, int], ...]
    trees: tuple[Segments, ...]
    doc_id: str

    @property
    def pair_tokens(self) -> int:
        """Tokens of every trunk, counted once, and of its branches."""
        return sum(chain.from_iterable(self.lengths))

    def on_rank(self, cp_size: int, cp_rank: int) -> "PairRows":
        """Return this context-parallel rank's rows [B, R]; counts and trees stay those of the whole pair."""
        rows = rows_on_rank(self.trees, cp_size, cp_rank)
        return self._with_tensors(lambda value: value[:, rows] if value.ndim == 2 else value)

    def to_device(self, device: torch.device | int) -> "PairRows":
        return self._with_tensors(lambda value: value.to(device, non_blocking=True))

    def tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "PairRows":
        changed: dict[str, Any] = {name: change(value) for name, value in self.tensors().items()}
        return replace(self, **changed)


def lay_out_pair(
    record: PairRecord, layout: PairLayout, cp_size: int = 1, tp_size: int = 1, *, short_prompts: bool = False
) -> PairRows:
    """Return all rows of a pair, padded so that they split over context- and tensor-parallel ranks.

    Row t of a sequence holds token t and predicts token t + 1, so a sequence of L tokens has L − 1 rows. Chosen and
    rejected share the rows before the trunk's last token, which predicts a different first token for each.

    | layout          | B | S, of each tree                                                       |
    |-----------------|---|-----------------------------------------------------------------------|
    | `shared_prefix` | 1 | shared rows, rows of the chosen branch, rows of the rejected branch   |
    | `concatenated`  | 2 | two full causal sequences, trunk + chosen and trunk + rejected        |

    With `short_prompts`, which the record must hold then, each turn follows as a tree of its own.
    """
    assert layout in get_args(PairLayout), layout
    parts = [record, *(record.turn_alone(turn) for turn in range(record.turns if short_prompts else 0))]
    sides = [(_sequence_rows(part, "chosen"), _sequence_rows(part, "rejected")) for part in parts]
    chosen, rejected = sides[0]
    counts = {
        "chosen_tokens": chosen["chosen_mask"].sum(),
        "rejected_tokens": rejected["rejected_mask"].sum(),
        "sequence_tokens": chosen["nll_mask"].sum(),
    }
    arrange = _shared_prefix if layout == "shared_prefix" else _concatenated
    arranged = [
        arrange(*both, len(part.trunk_ids) - 1, cp_size, tp_size) for both, part in zip(sides, parts, strict=True)
    ]
    rows = np.concatenate([rows for rows, _ in arranged], axis=1)
    return PairRows(
        **{name: torch.from_numpy(rows[name].copy()) for name in _ROW.names or ()},
        **{name: torch.tensor(count) for name, count in counts.items()},
        lengths=tuple(part.lengths for part in parts),
        trees=tuple(tree for _, tree in arranged),
        doc_id=record.doc_id,
    )


def _sequence_rows(record: PairRecord, side: Literal["chosen", "rejected"]) -> Array:
    """Return the rows of trunk + branch of one side, `_ROW` [L − 1]."""
    trunk = len(record.trunk_ids)
    ids = np.concatenate([record.trunk_ids, getattr(record, f"{side}_ids")])
    rows = np.zeros(len(ids) - 1, _ROW)
    rows["tokens"], rows["labels"], rows["position_ids"] = ids[:-1], ids[1:], np.arange(len(rows))
    turns = zip(getattr(record, f"{side}_spans"), getattr(record, f"ref_{side}_logps"), strict=True)
    for (start, end), logps in turns:
        response = slice(trunk + start - 1, trunk + end - 1)
        rows[f"{side}_mask"][response] = 1.0
        rows["ref_logps"][response] = logps
    if side == "chosen":
        rows["nll_mask"] = 1.0
        for start, end in record.nll_ignore_spans:
            rows["nll_mask"][max(start - 1, 0) : max(end - 1, 0)] = 0.0
    rows["labels"][(rows[f"{side}_mask"] == 0) & (rows["nll_mask"] == 0)] = IGNORE_LABEL
    return rows


def _concatenated(chosen: Array, rejected: Array, shared: int, cp_size: int, tp_size: int) -> tuple[Array, Segments]:
    length = padded_length(max(len(chosen), len(rejected)), cp_size, tp_size)
    return np.stack([_padded(chosen, length), _padded(rejected, length)]), Segments(length, length)


def _shared_prefix(chosen: Array, rejected: Array, shared: int, cp_size: int, tp_size: int) -> tuple[Array, Segments]:
    # At least one row, so that the trunk is never empty; padding of the branches makes all rows divisible by tp.
    trunk_rows = padded_length(max(shared, 1), cp_size)
    rows_per_rank = -(-(len(chosen) + len(rejected) - 2 * shared) // cp_size)
    rows_per_rank += -(trunk_rows // cp_size + rows_per_rank) % tp_size
    branch_rows = len(chosen) - shared, cp_size * rows_per_rank - (len(chosen) - shared)
    rows = [_padded(chosen[:shared], trunk_rows), chosen[shared:], _padded(rejected[shared:], branch_rows[1])]
    return np.concatenate(rows)[None], Segments(trunk_rows, shared, branch_rows)


def padded_length(length: int, cp_size: int, tp_size: int = 1) -> int:
    """Return the least S ≥ `length` that splits into 2·cp chunks, with S / cp divisible by tp (sequence parallel)."""
    multiple = cp_size * lcm(2, tp_size) if cp_size > 1 else tp_size
    return -(-length // multiple) * multiple


def _padded(rows: Array, length: int) -> Array:
    """Return `rows` followed by rows that are not scored; their positions continue to count."""
    padding = np.zeros(length - len(rows), _ROW)
    padding["labels"] = IGNORE_LABEL
    padding["position_ids"] = np.arange(length - len(rows)) + (rows["position_ids"][-1] + 1 if len(rows) else 0)
    return np.concatenate([rows, padding])
