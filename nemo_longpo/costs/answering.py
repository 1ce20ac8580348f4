"""Time of a model that answers: what it reads, and what it writes, on GPUs whose speed is known.

A prompt costs the operations of its forward, at a share of the GPU's peak. An answer costs memory traffic: each step
reads all weights once for the batch, and the keys and values of every sequence in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_longpo.errors import InputError

from . import flops
from .devices import GIB, Gpu
from .model_shape import ModelShape

READING_SHARE = 0.4
"""Of peak FLOP/s while prompts are read, assumed."""
WRITING_SHARE = 0.6
"""Of the memory's speed while answers are written, assumed."""
MEMORY_SHARE = 0.9
"""Of a GPU's memory for weights, keys and values, assumed."""
MOST_SEQUENCES = 64
"""Answers written at once, assumed; fewer where their keys and values do not fit."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs that share the work evenly, as one model over all of them or one copy on each."""

    gpu: Gpu
    gpus: int
    bytes_per_number: int = 2

    def reading_flops(self, shape: ModelShape, segments: Iterable[tuple[int, int]]) -> float:
        """Count the forward of positions [from, to), each of which meets all positions before it."""

        def whole(rows: int) -> float:
            return flops.linear_flops(shape, rows) + flops.causal_flops(shape, rows)

        return sum(whole(end) - whole(start) for start, end in segments)

    def reading_seconds(self, operations: float) -> float:
        return operations / (self.gpus * self.gpu.peak_flops * READING_SHARE)

    def writing_seconds(self, shape: ModelShape, asked: Iterable[tuple[int, int]]) -> float:
        """Return the time for answers, given by the tokens of prompt and answer, in batches of as many as fit.

        Raises InputError if the weights and one request do not fit.
        """
        weights = self.bytes_per_number * shape.parameters
        per_token = self.bytes_per_number * 2 * shape.layers * shape.kv_size
        room = MEMORY_SHARE * self.gpus * self.gpu.memory - weights
        requests, total = list(asked), 0.0
        for prompt, new in requests:
            own = per_token * (prompt + new)
            if own > room:
                raise InputError(
                    f"{self.gpus} x {self.gpu.name} cannot hold the model and a prompt of {prompt:,} tokens "
                    f"({(weights + own) / GIB:,.0f} GiB); give more with --gpus, or others with --gpu"
                )
            at_once = min(MOST_SEQUENCES, int(room / own), len(requests))
            total += new * (weights / at_once + own)
        return total / (self.gpus * self.gpu.memory_bandwidth * WRITING_SHARE)

    def assumptions(self) -> str:
        """Say in one sentence what the times rest on."""
        return (
            f"Times are for {self.gpus} x {self.gpu.name}: prompts at {READING_SHARE:.0%} of "
            f"{self.gpu.peak_flops / 1e12:,.0f} TFLOP/s, answers of full length at {WRITING_SHARE:.0%} of "
            f"{self.gpu.memory_bandwidth / 1e12:.1f} TB/s in batches of at most {MOST_SEQUENCES}, all GPUs busy; "
            "loading the model is not in them."
        )
