"""Load the engine that was asked for, each library only then, and let it run no batch of requests twice.

`ResumingEngine` keeps what the engine returned, so that a process that replaces a killed one need not ask again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nemo_longpo.errors import InputError

from ..options import settings_from
from ..runner import Kept, Tick, Usage
from ..settings import EngineSettings, ServerSettings, TransformersSettings, VllmSettings
from .engine import Completion, Engine, Sampling, Spans

Result = TypeVar("Result")


@dataclass(frozen=True)
class EngineOptions:
    """How to run the model: what may change the output, and the settings of each engine."""

    common: EngineSettings = field(default_factory=EngineSettings)
    transformers: TransformersSettings = field(default_factory=TransformersSettings)
    vllm: VllmSettings = field(default_factory=VllmSettings)
    server: ServerSettings = field(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        """Raises InputError if a setting belongs to an engine that is not the chosen one."""
        for name in ("transformers", "vllm", "server"):
            own = getattr(self, name)
            changed = [item.name for item in fields(own) if getattr(own, item.name) != item.default]
            if changed and name != self.common.engine:
                raise InputError(
                    f"{changed[0]} is a setting of engine {name}, but the engine is {self.common.engine}; "
                    "remove it or choose the other engine"
                )

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "EngineOptions":
        return EngineOptions(
            settings_from(EngineSettings, values),
            settings_from(TransformersSettings, values),
            settings_from(VllmSettings, values),
            settings_from(ServerSettings, values),
        )

    def load(self, model: Path, *, writes_json: bool = False) -> Engine:
        """An engine that writes JSON if that is asked for and it can. Raises InputError if the library is missing or
        the model cannot be loaded."""
        if self.common.engine == "vllm":
            from .vllm_engine import VllmEngine

            return VllmEngine(model, self.common, self.vllm, writes_json=writes_json)
        if self.common.engine == "server":
            from .server import ServerEngine

            return ServerEngine(model, self.common, self.server)
        from .hf_engine import TransformersEngine

        return TransformersEngine(model, self.common, self.transformers)


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

    def score(self, sequences: Sequence[Sequence[int]], spans: Spans, tick: Tick) -> list[list[np.ndarray]]:
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
