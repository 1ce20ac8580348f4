"""What a round asks models while it makes pairs and measures: the time on GPUs, and the files of pairs.

Per document of L tokens, with k chunks of c tokens, instructions of at most i and answers of at most r:

| step               | reads                       | writes | with prompts of |
|--------------------|-----------------------------|--------|-----------------|
| instructions       | k · c                       | k · i  | c               |
| chosen             | k · c                       | k · r  | c               |
| rejected           | L, once for all of its turns | k · r  | L               |
| scoring            | 2k · (c + r), or 2k · (L + r) with the document as the reference's context | 0 | |

Documents are taken to be as long as the round, and all answers as long as they may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_longpo.costs import answering, model_shape
from nemo_longpo.data_tools.pipeline.config import parse_pipeline
from nemo_longpo.data_tools.stages.registry import STAGES
from nemo_longpo.evaluation import suites

from .evolution_settings import Round

_TEXT_BYTES = 4  # of a token in a file of text, as English has
_ID_BYTES = 4  # of a token's id or log-prob in a shard
_TEXT_STAGES = 5  # from chunk to score: each writes the document and its chunks again


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Equal requests: `reads` prompts of `prompt` tokens, and `writes` answers of `new` tokens behind them."""

    reads: int
    writes: int
    prompt: int
    new: int

    def seconds(self, machine: answering.Machine, shape: model_shape.ModelShape) -> float:
        """Estimate their time. Raises InputError if the weights and one of them do not fit the GPUs."""
        reading = machine.reading_seconds(machine.reading_flops(shape, [(0, self.prompt)]))
        batch = answering.MOST_SEQUENCES * [(self.prompt, self.new)]
        return self.reads * reading + self.writes * machine.writing_seconds(shape, batch) / answering.MOST_SEQUENCES


@dataclass(frozen=True, kw_only=True)
class _Turns:
    """Of a document: how many, and their tokens; `context` is what the reference reads."""

    count: int
    chunk: int
    instruction: int
    answer: int
    context: int


def data_requests(own: Round, documents: int) -> list[Requests]:
    """Return what the stages of a round's data ask for so many documents."""
    turns = _turns(own)
    all_turns = documents * turns.count
    return [
        Requests(reads=all_turns, writes=all_turns, prompt=turns.chunk, new=turns.instruction),
        Requests(reads=all_turns, writes=all_turns, prompt=turns.chunk, new=turns.answer),
        Requests(reads=documents, writes=all_turns, prompt=own.length, new=turns.answer),
        Requests(reads=2 * all_turns, writes=0, prompt=turns.context + turns.answer, new=0),
    ]


def data_bytes(own: Round, documents: int) -> int:
    """Return the size of what the stages write: the files of five of them as text, and shards of ids and log-probs."""
    turns = _turns(own)
    read = own.length + turns.count * turns.chunk
    answers = turns.count * (turns.instruction + 2 * turns.answer)
    text = _TEXT_STAGES * _TEXT_BYTES * (read + answers)
    return documents * (text + _ID_BYTES * (read + 2 * answers))


def _turns(own: Round) -> _Turns:
    stages = {stage.call.stage: stage.call for stage in parse_pipeline(own.data, f"round {own.number}: data").stages}
    settings: dict[str, Any] = {name: call.settings(STAGES[name].settings[0]) for name, call in stages.items()}
    chunk = min(settings["chunk"].chunk_tokens, own.length)
    return _Turns(
        count=min(settings["chunk"].chunks_per_document, -(-own.length // chunk)),
        chunk=chunk,
        instruction=settings["instruct"].max_new_tokens,
        answer=settings["respond"].max_new_tokens,
        context=own.length if settings["score"].ref_context == "long" else chunk,
    )


def evaluation_requests(own: Round, models: int) -> tuple[list[Requests], list[str]]:
    """Return what so many models are asked at stated lengths, and the benchmarks whose lengths only their files say."""
    found, unknown = [], []
    for row in suites.choose(own.asked_settings["suite"]):
        if not row.lengths or row.samples is None:
            unknown.append(row.name)
            continue
        count = models * (own.asked_settings["samples"] or row.samples)
        for length in own.asked_settings["lengths"] or row.lengths:
            prompt = max(1, length - row.max_new_tokens)
            found.append(Requests(reads=count, writes=count, prompt=prompt, new=row.max_new_tokens))
    return found, unknown


def gpu_hours(requests: Sequence[Requests], machine: answering.Machine, shape: model_shape.ModelShape) -> float:
    """Return the GPU hours of requests. Raises InputError if one of them does not fit the GPUs."""
    return sum(own.seconds(machine, shape) for own in requests) * machine.gpus / 3600
