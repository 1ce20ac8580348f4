"""What a model still has to read and write: counted, shown while it is done, and priced in GPU time before.

A prompt costs the operations of its forward, at a share of the GPU's peak. An answer costs memory traffic: each step
reads all weights once for the batch, and the keys and values of every sequence in it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from nemo_longpo.costs import devices, flops, model_shape
from nemo_longpo.data_tools.runner import Usage
from nemo_longpo.errors import InputError
from nemo_longpo.live_status import StatusFile
from nemo_longpo.status_bar import StatusBar

from .judge.dialogues import DialoguePrompts
from .language_model import Answers, Asked
from .prompts import TaskPrompts

READING_SHARE = 0.4
"""Of peak FLOP/s while prompts are read, assumed."""
WRITING_SHARE = 0.6
"""Of the memory's speed while answers are written, assumed."""
MEMORY_SHARE = 0.9
"""Of a GPU's memory for weights, keys and values, assumed."""
MOST_SEQUENCES = 64
"""Answers written at once, assumed; fewer where their keys and values do not fit."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A task of a model before it is run. `requests` are distinct ones: several for a question with choices.

    `prompt_tokens` are read for those that are not `answered`; `computed_tokens` count what they share once. At most
    `most_new_tokens` are written. Without the sizes of a model there is no time.
    """

    model: str
    benchmark: str
    length: int | None
    questions: int
    dropped: int
    shortened: int
    requests: int
    answered: int
    prompt_tokens: int
    computed_tokens: int
    most_new_tokens: int
    flops: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs that share the work evenly, as one model over all of them or one copy on each."""

    gpu: devices.Gpu
    gpus: int
    bytes_per_number: int = 2

    def reading_flops(self, shape: model_shape.ModelShape, segments: Iterable[tuple[int, int]]) -> float:
        """Count the forward of positions [from, to), each of which meets all positions before it."""

        def whole(rows: int) -> float:
            return flops.linear_flops(shape, rows) + flops.causal_flops(shape, rows)

        return sum(whole(end) - whole(start) for start, end in segments)

    def reading_seconds(self, operations: float) -> float:
        return operations / (self.gpus * self.gpu.peak_flops * READING_SHARE)

    def writing_seconds(self, shape: model_shape.ModelShape, asked: Sequence[Asked]) -> float:
        """Return the time for answers of full length, in batches of as many as fit the memory.

        Raises InputError if the weights and one request do not fit.
        """
        weights = self.bytes_per_number * shape.parameters
        per_token = self.bytes_per_number * 2 * shape.layers * shape.kv_size
        room = MEMORY_SHARE * self.gpus * self.gpu.memory - weights
        total = 0.0
        for one in asked:
            own = per_token * (one.prompt_tokens + one.new_tokens)
            if own > room:
                raise InputError(
                    f"{self.gpus} x {self.gpu.name} cannot hold the model and a prompt of {one.prompt_tokens:,} tokens "
                    f"({(weights + own) / devices.GIB:,.0f} GiB); give more with --gpus, or others with --gpu"
                )
            at_once = min(MOST_SEQUENCES, int(room / own), len(asked))
            total += one.new_tokens * (weights / at_once + own)
        return total / (self.gpus * self.gpu.memory_bandwidth * WRITING_SHARE)

    def assumptions(self) -> str:
        """Say in one sentence what the times rest on."""
        return (
            f"Times are for {self.gpus} x {self.gpu.name}: prompts at {READING_SHARE:.0%} of "
            f"{self.gpu.peak_flops / 1e12:,.0f} TFLOP/s, answers of full length at {WRITING_SHARE:.0%} of "
            f"{self.gpu.memory_bandwidth / 1e12:.1f} TB/s in batches of at most {MOST_SEQUENCES}, all GPUs busy; "
            "loading the model is not in them."
        )


def work_of(
    model: str,
    tasks: Sequence[TaskPrompts | DialoguePrompts],
    answers: Answers,
    shape: model_shape.ModelShape | None,
    machine: Machine,
) -> Work:
    """Count what a model would still be asked by the tasks of one benchmark and length."""
    distinct = {key: one for task in tasks for key, one in task.distinct.items()}
    missing = [one for key, one in distinct.items() if key not in answers]
    segments = [segment for task in tasks for segment in task.computed]
    operations = seconds = None
    if shape is not None:
        operations = machine.reading_flops(shape, segments)
        seconds = machine.reading_seconds(operations) + machine.writing_seconds(shape, missing)
    return Work(
        model=model,
        benchmark=tasks[0].task.benchmark.name,
        length=tasks[0].task.length,
        questions=sum(task.questions for task in tasks),
        dropped=sum(task.dropped for task in tasks),
        shortened=sum(task.task.shortened for task in tasks),
        requests=len(distinct),
        answered=len(distinct) - len(missing),
        prompt_tokens=sum(one.prompt_tokens for one in missing),
        computed_tokens=sum(end - start for start, end in segments),
        most_new_tokens=sum(one.new_tokens for one in missing),
        flops=operations,
        seconds=seconds,
    )


def table(works: Sequence[Work]) -> str:
    """A line per model, benchmark and length, and one per model for all of it."""
    rows: list[tuple[str, ...]] = [
        (
            "",
            "benchmark",
            "length",
            "questions",
            "left out",
            "cut",
            "answered",
            "to read",
            "computed",
            "to write",
            "time",
        )
    ]
    for label in dict.fromkeys(work.model for work in works):
        own = [work for work in works if work.model == label]
        rows += [_cells(label, work.benchmark, work.length, [work]) for work in own]
        rows += [_cells(label, "all", None, own)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _cells(label: str, benchmark: str, length: int | None, own: Sequence[Work]) -> tuple[str, ...]:
    def total(name: str) -> int:
        return sum(asdict(work)[name] for work in own)

    seconds = [work.seconds for work in own if work.seconds is not None]
    return (
        label,
        benchmark,
        "" if length is None else f"{length:,}",
        *(f"{total(name):,}" for name in ("questions", "dropped", "shortened")),
        f"{total('answered') / max(total('requests'), 1):.0%}",
        *(f"{total(name):,}" for name in ("prompt_tokens", "computed_tokens", "most_new_tokens")),
        duration(sum(seconds)) if len(seconds) == len(own) else "?",
    )


def duration(seconds: float) -> str:
    """A rough time in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


class Progress:
    """A bar over all tokens that a model reads and may write, of which the answers that were there count as done.

    So the time left is right after a resume, and an answer that ends early counts in full. `weights` are the tokens of
    each request by its name, `known` the names of those answered before. Call it with the usage of finished requests.
    `status` counts tokens too, behind those of `before`, of other models.
    """

    def __init__(
        self, label: str, weights: Mapping[str, int], known: Iterable[str], status: StatusFile, before: int = 0
    ):
        self._left = dict(weights)
        self._used: Counter[str] = Counter()
        done = sum(self._left.pop(key) for key in known)
        # An average over all of it: requests of one length after those of another would make a recent rate jump.
        self.bar = StatusBar(
            status,
            before=before,
            total=sum(weights.values()),
            initial=done,
            desc=label,
            unit="tok",
            unit_scale=True,
            smoothing=0,
        )
        status.update(doing=label, done=before + done)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def begin(self) -> None:
        """Time counts from here on: the model is loaded."""
        self.bar.begin()

    def __call__(self, usage: Usage) -> None:
        self._used.update(asdict(usage))
        shared, read = self._used["cached_prompt_tokens"], self._used["prompt_tokens"]
        if shared > 0.01 * read:
            self.bar.set_postfix_str(f"{shared / read:.0%} of prompts shared", refresh=False)

    def answered(self, key: str) -> None:
        """A request has its answer."""
        self.bar.update(self._left.pop(key, 0))

    def finish(self, keys: Iterable[str]) -> None:
        """A task is done: so are those of its requests that were answered under other names."""
        self.bar.update(sum(self._left.pop(key, 0) for key in keys))
