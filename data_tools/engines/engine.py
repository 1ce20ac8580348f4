"""The interface of engines: token ids in, token ids or log-probs out.

`ResumingEngine` keeps an engine's results, so that a process that replaces a killed one need not compute them again.
A `ReportingEngine` hands over each result as soon as it is there, to a caller that keeps them itself.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from nemo_longpo.shards.schema import Span

from ..runner import Kept, Tick, Usage

Result = TypeVar("Result")
Spans = Sequence[Sequence[Span]]
"""Per sequence, the ranges [start, end) of tokens to return log-probs for."""
Done = Callable[[int, Result], None]
"""Called with a request's index and its result as soon as it is finished."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature 0 is greedy. `stop_ids` end an answer and are not part of it. With `json_schema` an answer is JSON
    of that schema, unless it is cut; only for an engine that `writes_json`."""

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
        """The longest sequence that the engine accepts, answer included; None if only memory limits it."""

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding; every token id is below this number."""

    @property
    def dtype(self) -> str:
        """The dtype that the model runs in, such as "float32"."""

    @property
    def writes_json(self) -> bool:
        """Whether the engine can force answers to follow a JSON schema."""

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Group requests of these lengths (tokens, answers included) into batches of indices. A batch's result does not
        depend on the others. An engine that schedules requests itself has one batch."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], tick: Tick
    ) -> list[Completion]:
        """Return one completion per prompt, in order. Draws depend only on the prompt and its seed.

        `tick` is called whenever requests have finished.
        """

    def score(self, sequences: Sequence[Sequence[int]], spans: Spans, tick: Tick) -> list[list[np.ndarray]]:
        """Return, per sequence and span [start, end) with start ≥ 1, float32 log p(x_t | x_<t) of every token in
        the span."""


class ReportingEngine(Engine, Protocol):
    """A loaded model that calls `done` for every finished request, in any order.

    With `wanted` only these requests are answered, and only their results returned, in the order of their indices. The
    others decide which requests are computed together, as far as the engine's results depend on that: so the bits of
    an answer are the same whatever is known already.
    """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        tick: Tick,
        done: Done[Completion] = ...,
        wanted: Collection[int] | None = None,
    ) -> list[Completion]:
        """As Engine.generate."""

    def score(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Spans,
        tick: Tick,
        done: Done[list[np.ndarray]] = ...,
        wanted: Collection[int] | None = None,
    ) -> list[list[np.ndarray]]:
        """As Engine.score."""

    def close(self) -> None:
        """Give back the memory; the engine is of no use afterwards."""


def no_report(index: int, result: Any) -> None:
    """The `done` of a caller that waits for all results."""


def indices(count: int, wanted: Collection[int] | None) -> list[int]:
    """Return the wanted ones of `count` requests in order; without `wanted`, all."""
    return list(range(count)) if wanted is None else sorted(wanted)


class ResumingEngine:
    """Passes requests to `engine` in the engine's own batches, and keeps the results of each batch.

    So a part made by two processes has the same batches, and the same bits, as one made by one. `expect` is called with
    the number of requests. If an engine has only one batch, it is not kept.
    """

    def __init__(self, engine: Engine, keeper: Kept, expect: Callable[[int], None]):
        self._engine, self._keeper, self._expect = engine, keeper, expect
        self.context_length, self.max_length = engine.context_length, engine.max_length
        self.vocab_size, self.dtype, self.writes_json = engine.vocab_size, engine.dtype, engine.writes_json

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        return self._engine.batches(lengths)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], tick: Tick
    ) -> list[Completion]:
        def work(batch: list[int], tick: Tick) -> list[Completion]:
            return self._engine.generate([prompts[i] for i in batch], sampling, [seeds[i] for i in batch], tick)

        asked = asdict(sampling) | {"stop_ids": sorted(sampling.stop_ids)}
        return self._run(
            [len(prompt) + sampling.max_new_tokens for prompt in prompts],
            lambda batch: ["generate", asked, [[list(prompts[i]), seeds[i]] for i in batch]],
            work,
            asdict,
            lambda kept: Completion(**kept),
            tick,
        )

    def score(self, sequences: Sequence[Sequence[int]], spans: Spans, tick: Tick) -> list[list[np.ndarray]]:
        def work(batch: list[int], tick: Tick) -> list[list[np.ndarray]]:
            return self._engine.score([sequences[i] for i in batch], [spans[i] for i in batch], tick)

        return self._run(
            [len(sequence) for sequence in sequences],
            lambda batch: ["score", [[list(sequences[i]), [list(span) for span in spans[i]]] for i in batch]],
            work,
            lambda result: [logps.tolist() for logps in result],  # a float32 survives the conversion to float
            lambda kept: [np.array(logps, dtype=np.float32) for logps in kept],
            tick,
        )

    def _run(
        self,
        lengths: list[int],
        question: Callable[[list[int]], Any],
        work: Callable[[list[int], Tick], list[Result]],
        to_json: Callable[[Result], Any],
        from_json: Callable[[Any], Result],
        tick: Tick,
    ) -> list[Result]:
        self._expect(len(lengths))
        results: dict[int, Result] = {}
        batches = self._engine.batches(lengths)
        for batch in batches:
            key = hashlib.sha256(json.dumps(question(batch)).encode()).hexdigest()
            kept = self._keeper.get(key)
            if kept is None:
                usage: list[Usage] = []

                def note(used: Usage, usage: list[Usage] = usage) -> None:
                    usage.append(used)
                    tick(used)

                found = work(batch, note)
                if len(batches) > 1:
                    values = {"usage": list(map(asdict, usage)), "results": list(map(to_json, found))}
                    self._keeper.put(key, values)
            else:
                found = [from_json(value) for value in kept["results"]]
                for used in kept["usage"]:
                    tick(Usage(**used))
            results.update(zip(batch, found, strict=True))
        return [results[index] for index in range(len(lengths))]
