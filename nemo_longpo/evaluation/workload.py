"""What a model still has to read and write: counted, shown while it is done, and priced in GPU time before."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from nemo_longpo.costs import answering, model_shape
from nemo_longpo.data_tools.runner import Usage
from nemo_longpo.live_status import StatusFile
from nemo_longpo.status_bar import StatusBar

from .judge.dialogues import DialoguePrompts
from .language_model import Answers
from .prompts import TaskPrompts


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


def work_of(
    model: str,
    tasks: Sequence[TaskPrompts | DialoguePrompts],
    answers: Answers,
    shape: model_shape.ModelShape | None,
    machine: answering.Machine,
) -> Work:
    """Count what a model would still be asked by the tasks of one benchmark and length."""
    distinct = {key: one for task in tasks for key, one in task.distinct.items()}
    missing = [one for key, one in distinct.items() if key not in answers]
    segments = [segment for task in tasks for segment in task.computed]
    operations = seconds = None
    if shape is not None:
        operations = machine.reading_flops(shape, segments)
        seconds = machine.reading_seconds(operations) + machine.writing_seconds(
            shape, ((one.prompt_tokens, one.new_tokens) for one in missing)
        )
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
