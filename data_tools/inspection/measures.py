"""The numbers of every document and turn, taken in one pass over the records; no token ids are kept."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nemo_longpo.shards.schema import PairRecord

from .similarity import similarity


@dataclass(frozen=True, eq=False)
class Measures:
    """float64 arrays over D documents or N turns (all documents' turns in order). Sums and means are of reference
    log-probs over an answer's tokens, end of turn included, in nats."""

    sequence_tokens: np.ndarray  # [D] the trunk and the longer branch
    turns: np.ndarray  # [D]
    chosen_tokens: np.ndarray  # [N]
    rejected_tokens: np.ndarray  # [N]
    chosen_sums: np.ndarray  # [N]
    rejected_sums: np.ndarray  # [N]
    similarity: np.ndarray  # [N]

    @property
    def turn_margins(self) -> np.ndarray:
        """[N] log p(chosen) − log p(rejected)"""
        return self.chosen_sums - self.rejected_sums

    @property
    def document_margins(self) -> np.ndarray:
        """[D] the sum of the document's turn margins"""
        owner = np.repeat(np.arange(len(self.turns)), self.turns.astype(np.int64))
        return np.bincount(owner, weights=self.turn_margins, minlength=len(self.turns))

    @property
    def chosen_means(self) -> np.ndarray:
        """[N] per token"""
        return self.chosen_sums / np.maximum(self.chosen_tokens, 1)

    @property
    def rejected_means(self) -> np.ndarray:
        """[N] per token"""
        return self.rejected_sums / np.maximum(self.rejected_tokens, 1)


def measure(records: Iterable[PairRecord]) -> Measures:
    """Read every record once."""
    documents, turns = _Columns(2), _Columns(5)
    for record in records:
        trunk, chosen, rejected = record.lengths
        documents.add(trunk + max(chosen, rejected), record.turns)
        for turn in range(record.turns):
            left = answer_ids(record.chosen_ids, record.chosen_spans[turn])
            right = answer_ids(record.rejected_ids, record.rejected_spans[turn])
            sums = logp_sum(record.ref_chosen_logps[turn]), logp_sum(record.ref_rejected_logps[turn])
            turns.add(len(left), len(right), *sums, similarity(left, right))
    return Measures(*documents.arrays(), *turns.arrays())


def answer_ids(branch: np.ndarray, span: np.ndarray) -> list[int]:
    """The token ids of one answer, end of turn included."""
    start, end = span
    return branch[start:end].tolist()


def logp_sum(logps: np.ndarray) -> float:
    """In float64, which thousands of float32 values need."""
    return float(logps.sum(dtype=np.float64))


class _Columns:
    """Growing columns of numbers, eight bytes each."""

    def __init__(self, count: int):
        self._columns = [array("d") for _ in range(count)]

    def add(self, *row: float) -> None:
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)

    def arrays(self) -> list[np.ndarray]:
        return [np.array(column, dtype=np.float64) for column in self._columns]
