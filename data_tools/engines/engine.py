"""What the stages ask of an engine: token ids in, token ids or log-probs out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from nemo_longpo.shards.schema import Span

from ..runner import Tick

Spans = Sequence[Sequence[Span]]
"""Per sequence, the ranges [start, end) of tokens whose log-probs are asked for."""


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. `stop_ids` end an answer and are not part of it. With `json_schema` an answer is JSON
    of that schema, as far as it goes; only for an engine that `writes_json`."""

    max_new_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    json_schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Completion:
    """Generated ids without the stop token; "length" means that the answer was cut at `max_new_tokens`."""

    ids: list[int]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """A loaded model."""

    @property
    def context_length(self) -> int:
        """The longest sequence that the model was made for, in tokens."""

    @property
    def max_length(self) -> int | None:
        """The longest sequence that the engine takes, answer included; None if only memory limits it."""

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding: every token id lies below it."""

    @property
    def dtype(self) -> str:
        """The dtype that the model runs in, such as "float32"."""

    @property
    def writes_json(self) -> bool:
        """Whether answers can be held to a JSON schema while they are written."""

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Group requests of so many tokens, answers included, into lists of indices that are worked on together. The
        result of a batch does not depend on the others. An engine that takes requests as they come has one batch."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], tick: Tick
    ) -> list[Completion]:
        """Return one completion per prompt, in order. What is drawn depends on the prompt and its seed alone.

        `tick` is called whenever requests have finished.
        """

    def score(self, sequences: Sequence[Sequence[int]], spans: Spans, tick: Tick) -> list[list[np.ndarray]]:
        """Return, per sequence and span [start, end) with start ≥ 1, float32 log p(x_t | x_<t) of every token in
        the span."""
