"""What a benchmark is (a row of the table in suites.py), what its tasks are built from, and what they come to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemo_longpo.errors import InputError

Ability = Literal["long", "short", "chat"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A row of the table of benchmarks.

    `build` names a function from this row and a Preparation to a list of EvalTask, as "module:function". `files` are
    the names that the function reads under the data directory. `lengths` are the tokens of prompt and answer where a
    benchmark is made to a length; without any it has the lengths of its documents. `samples` is the number of questions
    per length, None for all there are. `metric` is the name of the harness's metric, from 0 to 1, and larger is better.
    With `chat_template` a question is a user's message, without it plain text. `column` is the paper's name of the
    result, and the key of its numbers in paper.yaml. A score of 1 is shown as `scale`: 100 for percent, 10 for the
    ratings of judges.
    """

    name: str
    title: str
    ability: Ability
    build: str
    metric: str
    files: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    num_fewshot: int = 0
    samples: int | None = None
    max_new_tokens: int = 0
    chat_template: bool = False
    column: str = ""
    scale: float = 100.0


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What the tasks of one model are built from.

    `count_tokens(prompt, answer_prefix)` is the number of tokens that the model reads for a question, chat template
    included. `max_length` is the most that it reads and writes. `lengths` and `samples` replace those of a row.
    Questions that are made take time: `questions` is the directory where they are kept. With `shorten`, prompts are cut
    to the model's length where the official evaluation of a benchmark does so.
    """

    data: Path | None
    tokenizer: Any
    count_tokens: Callable[[str, str], int]
    max_length: int
    seed: int
    questions: Path
    lengths: tuple[int, ...] = ()
    samples: int | None = None
    wording: Path | None = None
    shorten: bool = True

    def lengths_of(self, benchmark: Benchmark) -> tuple[int, ...]:
        """The lengths to build: those asked for, else the row's own that the model can read."""
        return self.lengths or tuple(length for length in benchmark.lengths if length <= self.max_length)

    def samples_of(self, benchmark: Benchmark) -> int | None:
        return benchmark.samples if self.samples is None else self.samples

    def file(self, benchmark: Benchmark, name: str) -> Path:
        """Return the path of a data file. Raises InputError if there is none."""
        if self.data is None:
            raise InputError(
                f"{benchmark.name} reads {name}; say where it is with --data DIR, and fetch it into it with --fetch"
            )
        path = self.data / name
        if not path.exists():
            raise InputError(
                f"{benchmark.name} reads {path}, which does not exist; fetch it with --fetch, or see docs/evaluation.md"
            )
        return path


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """A task of lm-evaluation-harness, ready to make its prompts. `length` in tokens, where the benchmark has lengths.

    `shortened` questions were cut in the middle by the rules of their benchmark. `categories` are those of
    questions, by id.
    """

    benchmark: Benchmark
    task: Any
    length: int | None = None
    shortened: int = 0
    categories: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question: its name in the task, its score from 0 to 1, and what was written.

    `prompt_hash` is the SHA-256 of the text that the model read. `answer` is the text written, or the log-likelihoods
    of the choices. `parts` are the scores whose mean is `score`, where there are several, such as those of the turns
    of a conversation. `document` names the text that several questions share.
    """

    id: str
    score: float
    prompt_hash: str
    answer: Any
    expected: Any
    category: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    document: str = ""


@dataclass(frozen=True, kw_only=True)
class JudgedBy:
    """The judge of the scores, by the name that its server knows, and its first and last day, as YYYY-MM-DD.

    `rules` is the SHA-256 of what the judge was told, apart from questions and answers.
    """

    name: str
    first_day: str
    last_day: str
    rules: str


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """One benchmark at one length. `dropped` questions did not fit; `shortened` ones were cut by its rules.

    `unscored` answers got no rating that can be read. They are in no mean.
    """

    benchmark: str
    length: int | None
    metric: str
    ability: Ability
    title: str
    column: str
    samples: tuple[Sample, ...]
    dropped: int = 0
    shortened: int = 0
    scale: float = 100.0
    unscored: int = 0
    judge: JudgedBy | None = None


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """All of one model. `identity` is what makes two models the same: weights, RoPE settings, dtype, tokenizer.

    `max_length` is the most tokens that it reads and writes.
    """

    label: str
    identity: dict[str, Any]
    tasks: tuple[TaskScores, ...]
    max_length: int
