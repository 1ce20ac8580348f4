"""An engine that does no batch of requests twice, even if the process that did it the first time is gone."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import numpy as np

from nemo_longpo.shards.schema import Span

from ..runner.progress import Tick, Usage
from .base import Completion, Engine, Sampling

Result = TypeVar("Result")


class Keeper(Protocol):
    """The runner's side: values that outlive the process, by key."""

    def get(self, key: str) -> Any | None: ...

    def put(self, key: str, value: Any) -> None: ...


class ResumingEngine:
    """Passes requests on, batch by batch as `engine` would cut them, and keeps what each batch gave.

    So a part that is made in two sittings has the same batches, and the same bits, as one made in one. `expect` is
    told how many requests there are. An engine that works on all requests at once has one batch, which is not kept.
    """

    def __init__(self, engine: Engine, keeper: Keeper, expect: Callable[[int], None]):
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

    def score(
        self, sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]], tick: Tick
    ) -> list[list[np.ndarray]]:
        def work(batch: list[int], tick: Tick) -> list[list[np.ndarray]]:
            return self._engine.score([sequences[i] for i in batch], [spans[i] for i in batch], tick)

        return self._run(
            [len(sequence) for sequence in sequences],
            lambda batch: ["score", [[list(sequences[i]), [list(span) for span in spans[i]]] for i in batch]],
            work,
            lambda result: [logps.tolist() for logps in result],  # a float32 comes back from a float as it was
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
                found, usage = _watched(work, batch, tick)
                if len(batches) > 1:
                    self._keeper.put(key, {"usage": usage, "results": [to_json(result) for result in found]})
            else:
                found = [from_json(value) for value in kept["results"]]
                for used in kept["usage"]:
                    tick(Usage(**used))
            results.update(zip(batch, found, strict=True))
        return [results[index] for index in range(len(lengths))]


def _watched(
    work: Callable[[list[int], Tick], list[Result]], batch: list[int], tick: Tick
) -> tuple[list[Result], list[dict[str, int]]]:
    """The results, and what was said of their usage."""
    usage: list[dict[str, int]] = []

    def note(used: Usage) -> None:
        usage.append(asdict(used))
        tick(used)

    return work(batch, note), usage
