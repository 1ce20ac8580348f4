"""Questions whose answers the model writes, as tasks of lm-evaluation-harness; questions of one's own."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.typed_fields import Names

from .benchmarks import Benchmark, EvalTask, Preparation
from .data_files import ADVICE, typed_rows

# What a terminal would not print counts as the end of a line.
_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the model reads and what is right.

    `prompt` is the user's message; `answer_prefix` are the first words of the answer, which the model continues.
    `document` names the text that several questions share. `category` is the part of a benchmark that it belongs to.
    `shortened_tokens` were cut from the middle, as the official evaluation does.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    answer_prefix: str = ""
    document: str = ""
    category: str = ""
    shortened_tokens: int = 0


Scorer = Callable[[str, Question], float]
"""From the model's answer, stripped of white space around it, to a number from 0 (wrong) to 1 (right)."""


def question_task(
    benchmark: Benchmark, questions: Sequence[Question], scorer: Scorer, *, max_new_tokens: int, length: int | None
) -> EvalTask:
    """The questions as one task: greedy answers of at most `max_new_tokens`, whose score is the mean of `scorer`."""
    from datasets import Dataset

    if not questions:
        raise InputError(f"{benchmark.name}: there is no question in {', '.join(benchmark.files)}; {ADVICE}")
    if repeated := [name for name, count in Counter(question.id for question in questions).items() if count > 1]:
        raise InputError(f"{benchmark.name}: two questions have the id {repeated[0]!r}; give each its own")
    by_id = {question.id: question for question in questions}
    documents = Dataset.from_list([asdict(question) | {"answers": list(question.answers)} for question in questions])
    task = harness_task(
        {
            "task": benchmark.name if length is None else f"{benchmark.name}_{length}",
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": lambda row: row["prompt"],
            "doc_to_target": lambda row: row["answers"],
            "gen_prefix": "{{answer_prefix}}",
            "target_delimiter": " ",
            "process_results": lambda row, found: {benchmark.metric: scorer(found[0].strip(), by_id[row["id"]])},
            "metric_list": [{"metric": benchmark.metric, "aggregation": "mean", "higher_is_better": True}],
            "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False, "temperature": 0.0},
            "num_fewshot": 0,
        },
        {"test": documents},
    )
    return EvalTask(
        benchmark=benchmark,
        task=task,
        length=length,
        shortened=sum(question.shortened_tokens > 0 for question in questions),
        categories={question.id: question.category for question in questions},
    )


def harness_task(config: dict[str, Any], splits: Mapping[str, Any]) -> Any:
    """A task of lm-evaluation-harness by its configuration, on these splits (datasets.Dataset) instead of its own."""
    from lm_eval.api.task import ConfigurableTask

    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)  # it explains its own command line
    return ConfigurableTask(config=config | {"custom_dataset": lambda **_: splits})


def shorten(prompt: str, benchmark: Benchmark, preparation: Preparation) -> tuple[str, int]:
    """Cut the middle of a prompt, so that it fits the model with its answer; return it, and the tokens cut.

    Of the whole prompt's tokens, instructions and all, equally many stay in front and behind. What fits is as it was.
    Raises InputError if nothing of the prompt would stay.
    """
    most = preparation.max_length - benchmark.max_new_tokens
    if not preparation.shorten:
        return prompt, 0
    ids = preparation.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if len(ids) <= most and preparation.count_tokens(prompt, "") <= most:
        return prompt, 0
    kept, excess = len(ids), max(len(ids) + preparation.count_tokens("", "") - most, 1)
    while excess > 0:  # again, if the text of what stays has more tokens than stayed
        kept -= excess
        half = kept // 2
        if half < 1:
            raise InputError(
                f"{benchmark.name}: answers take {benchmark.max_new_tokens:,} tokens, and the model reads and writes "
                f"{preparation.max_length:,}, which leaves no place for a question; leave this benchmark out"
            )
        text = preparation.tokenizer.decode(ids[:half] + ids[-half:], clean_up_tokenization_spaces=False)
        excess = preparation.count_tokens(text, "") - most
    return text, len(ids) - 2 * half


def string_match(written: str, question: Question) -> float:
    """Return the share of the answers that occur in what was written."""
    return sum(_occurrences(written, question)) / len(question.answers)


def string_match_any(written: str, question: Question) -> float:
    """Return 1 if one of the answers occurs in what was written, else 0."""
    return float(any(_occurrences(written, question)))


def _occurrences(written: str, question: Question) -> list[bool]:
    text = _CONTROL.sub("\n", written).lower()
    return [answer.lower() in text for answer in question.answers]


@dataclass(frozen=True, kw_only=True)
class _Line:
    prompt: str
    answers: Names
    length: int | None = None
    answer_prefix: str = ""
    document: str = ""
    id: str | None = None


def build_own(benchmark: Benchmark, preparation: Preparation) -> list[EvalTask]:
    """Return one task per length in the file. Raises InputError, naming the line, if one cannot be used."""
    by_length: dict[int | None, list[Question]] = defaultdict(list)
    path = Path(benchmark.files[0])
    for number, (_, line) in enumerate(typed_rows(path, _Line)):
        asked = Question(
            id=line.id or f"{path.stem}:{number}",
            prompt=line.prompt,
            answers=tuple(line.answers),
            answer_prefix=line.answer_prefix,
            document=line.document,
        )
        by_length[line.length].append(asked)
    chosen = [length for length in by_length if not preparation.lengths or length in preparation.lengths]
    if not chosen:
        raise InputError(f"{path} has no question of the lengths asked for; it has {sorted(map(str, by_length))}")
    return [
        question_task(
            benchmark, by_length[length], string_match, max_new_tokens=benchmark.max_new_tokens, length=length
        )
        for length in sorted(chosen, key=lambda length: length or 0)
    ]
