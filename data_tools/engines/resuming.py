"""An engine that runs no batch of requests twice, even if the process that ran it first was killed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from nemo_longpo.shards.schema import Span

from ..runner.kept import Kept
from ..runner.progress import Tick, Usage
from .base import Completion, Engine, Sampling

Result = TypeVar("Result")


class ResumingEngine:
    """Passes requests on, batch by batch as `engine` would cut them, and keeps what each batch gave.

    So a part that is made by two processes has the same batches, and the same bits, as one made by one. `expect` is
    told how many requests there are. An engine that works on all requests at once has one batch, which is not kept.
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
