"""What a training run asks of the shards it is given, before the first step."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_longpo.errors import InputError
from nemo_longpo.objective import REF_CONTEXT_OF_LOSS, Objective

from .reader import ShardReader


@dataclass(frozen=True)
class Requirements:
    """What a run can train on: `vocabulary_rows` of the model's embedding, and `seq_length` tokens of trunk + branch.

    `positions` are those of the model's configuration (None if it does not say).
    """

    vocabulary_rows: int
    seq_length: int
    positions: int | None
    objective: Objective

    def check(self, reader: ShardReader, lengths: NDArray[np.int64]) -> None:
        """Raises InputError if this run cannot train on the shards; `lengths` are the reader's."""
        self._check_vocabulary(reader)
        self._check_reference(reader)
        self._check_lengths(reader, lengths)

    def _check_vocabulary(self, reader: ShardReader) -> None:
        size = reader.manifest.vocab_size
        if size > self.vocabulary_rows:
            raise InputError(
                f"{reader.directory} was written for a vocabulary of {size}, but the model has "
                f"{self.vocabulary_rows} rows; train the model that the shards were scored with."
            )

    def _check_reference(self, reader: ShardReader) -> None:
        found, needed = reader.manifest.ref_context, self.objective.ref_context
        if needed is None or found == needed:
            return
        fitting = [name for name, context in REF_CONTEXT_OF_LOSS.items() if context in (found, None)]
        raise InputError(
            f"model.objective.loss_type={self.objective.loss_type} compares with a reference that read {_READ[needed]} "
            f"({needed!r}), but in {reader.directory} it read {_READ[found]} ({found!r}); score the pairs with "
            f"`--ref-context {needed}`, or choose one of {', '.join(fitting)}."
        )

    def _check_lengths(self, reader: ShardReader, lengths: NDArray[np.int64]) -> None:
        if not len(lengths):
            return
        tokens = lengths[:, 0] + lengths[:, 1:].max(1)
        longest = int(tokens.argmax())
        if tokens[longest] > self.seq_length:
            raise InputError(
                f"{reader.describe(longest)} has {tokens[longest]} tokens, more than "
                f"data.seq_length={self.seq_length}; raise it or pack shorter documents."
            )
        if self.positions is not None and tokens[longest] > self.positions:
            raise InputError(
                f"{reader.describe(longest)} has {tokens[longest]} tokens, and the model's configuration gives it "
                f"{self.positions} positions; import it with `longpo convert import --max-length {tokens[longest]}` or "
                "more (and a --rope-theta or --rope-scaling for them), or pack shorter documents."
            )


_READ = {"short": "the chunk alone", "long": "the whole document"}
