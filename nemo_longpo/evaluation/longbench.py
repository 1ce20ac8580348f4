"""LongBench v2 by the rules of its authors (arXiv 2412.15204, THUDM/LongBench): no examples, no chain of thought.

The model writes its choice, and a letter is read from it. Theirs is drawn at temperature 0.1, ours is greedy. A prompt
that is too long loses its middle, as theirs does.
"""

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, get_args

from nemo_longpo.typed_fields import Kind

from . import data_files, questions
from .benchmarks import Benchmark, EvalTask, Preparation
from .questions import Question

Difficulty = Literal["easy", "hard"]
Length = Literal["short", "medium", "long"]


def _one_of(*values: str) -> Kind:
    return Kind(f"one of {', '.join(values)}", lambda value: value in values)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the published file."""

    _id: str
    difficulty: Annotated[str, _one_of(*get_args(Difficulty))]
    length: Annotated[str, _one_of(*get_args(Length))]
    question: str
    choice_A: str
    choice_B: str
    choice_C: str
    choice_D: str
    answer: Annotated[str, _one_of(*"ABCD")]
    context: str


def build(benchmark: Benchmark, preparation: Preparation) -> list[EvalTask]:
    """Build one task; the category of a question is its difficulty and its length, such as "hard, long".

    Raises InputError if the file or a row is not as published.
    """
    rows = data_files.typed_rows(preparation.file(benchmark, benchmark.files[0]), Row)
    asked = []
    for _, row in islice(rows, preparation.samples_of(benchmark)):
        prompt, cut = questions.shorten(_prompt(row), benchmark, preparation)
        asked.append(
            Question(
                id=row._id,
                prompt=prompt,
                answers=(row.answer,),
                category=f"{row.difficulty}, {row.length}",
                shortened_tokens=cut,
            )
        )
    return [questions.question_task(benchmark, asked, letter, max_new_tokens=benchmark.max_new_tokens, length=None)]


def _prompt(row: Row) -> str:
    """The harness's words up to the choices, which are the official ones; then how to answer, which it leaves out."""
    import lm_eval.tasks
    from lm_eval.tasks import _yaml_loader
    from lm_eval.utils import apply_template

    folder = Path(lm_eval.tasks.__file__).parent / "longbench2"
    words, cue, _ = _yaml_loader.load_yaml(folder / "_longbench_common_yaml")["doc_to_text"].rpartition("Answer:")
    assert cue
    choices = [row.choice_A, row.choice_B, row.choice_C, row.choice_D]
    asked = {
        "context": row.context.strip(),
        "question": row.question,
        "choices": [choice.strip() for choice in choices],
    }
    # prompts/0shot.txt of THUDM/LongBench; the letter is read from this sentence.
    how = 'Format your response as follows: "The correct answer is (insert answer here)".'
    return apply_template(words, asked) + how


def letter(written: str, question: Question) -> float:
    """1 if the sentence asked for names the right letter, in parentheses if any are there; else 0. `*` is ignored."""
    plain = written.replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", plain) or re.search(r"The correct answer is ([A-D])", plain)
    return float(found is not None and found[1] in question.answers)
