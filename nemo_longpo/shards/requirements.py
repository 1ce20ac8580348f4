"""What a training run asks of the shards it is given, before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_longpo.errors import InputError
from nemo_longpo.objective import REF_CONTEXT_OF_LOSS, Objective

from .reader import ShardReader


@dataclass(frozen=True)
class Requirements:
    """What a run can train on: `vocabulary_rows` of the model's embedding, and `seq_length` tokens of trunk + branch.

    Short prompts with their answers, where the objective reads them, have to fit as well.

    `positions` are those of the model's configuration (None if it does not say).
    """

    vocabulary_rows: int
    seq_length: int
    positions: int | None
    objective: Objective

    def check(
        self,
        reader: ShardReader,
        lengths: NDArray[np.int64],
        short_lengths: Sequence[Sequence[tuple[int, int, int]]] = (),
    ) -> None:
        """Raises InputError if this run cannot train on the shards; both lengths are the reader's."""
        self._check_vocabulary(reader)
        self._check_reference(reader)
        if len(lengths):
            self._check_tokens(reader, lengths[:, 0] + lengths[:, 1:].max(1), "")
        if self.objective.reads_short_prompts:
            self._check_short_prompts(reader, short_lengths)

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

    def _check_short_prompts(
        self, reader: ShardReader, short_lengths: Sequence[Sequence[tuple[int, int, int]]]
    ) -> None:
        for record, turns in enumerate(short_lengths):
            if not turns:
                raise InputError(
                    f"model.objective.loss_type={self.objective.loss_type} trains on every turn's short prompt too, "
                    f"and {reader.describe(record)} has none; pack the pairs again with this version's `longpo data "
                    "pack`, or choose another loss."
                )
        tokens = [max(prompt + max(answers) for prompt, *answers in turns) for turns in short_lengths]
        if tokens:
            self._check_tokens(reader, np.array(tokens), " in a short prompt and its answer")

    def _check_tokens(self, reader: ShardReader, tokens: NDArray[np.int64], where: str) -> None:
        """Check the longest sequence of every record."""
        longest = int(tokens.argmax())
        if tokens[longest] > self.seq_length:
            raise InputError(
                f"{reader.describe(longest)} has {tokens[longest]} tokens{where}, more than "
                f"data.seq_length={self.seq_length}; raise it or pack shorter documents."
            )
        if self.positions is not None and tokens[longest] > self.positions:
            raise InputError(
                f"{reader.describe(longest)} has {tokens[longest]} tokens{where}, and the model's configuration gives "
                f"it {self.positions} positions; import it with `longpo convert import --max-length {tokens[longest]}` "
                "or more (and a --rope-theta or --rope-scaling for them), or pack shorter documents."
            )


_READ = {"short": "the chunk alone", "long": "the whole document"}
