"""InfiniteBench's En.Sum, En.QA and En.MC by the rules of its authors (arXiv 2402.13718, OpenBMB/InfiniteBench).

The prompts are their set for GPT-4, whose words lm-evaluation-harness has; those that they have for YaRN-Mistral,
Claude 2 and Kimi are not used. Answers are greedy, and a line break does not end them. A prompt that is too long loses
its middle. The scores follow their rules, which are not those of the harness:

    En.Sum  ROUGE-Lsum without stemming, line breaks as written, best of all reference summaries
    En.QA   F1 of words, best of all answers; lower case, then no punctuation, then no articles
    En.MC   a first character A to D is the choice; else see `choice`

Answers come without the white space around them.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from nemo_longpo.errors import InputError
from nemo_longpo.typed_fields import Kind, Names

from . import data_files, questions
from .benchmarks import Benchmark, EvalTask, Preparation
from .questions import Question

LETTERS = "ABCD"
_TEXTS = Kind(
    "a text, or a list of texts",
    lambda value: (
        isinstance(value, str)
        or (isinstance(value, list) and value != [] and all(isinstance(item, str) for item in value))
    ),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the published files. `options` are the choices of En.MC; `input` is the question, empty in En.Sum."""

    id: int
    context: str
    input: str
    answer: Annotated[Any, _TEXTS]
    options: Names = field(default_factory=list)


def build(benchmark: Benchmark, preparation: Preparation) -> list[EvalTask]:
    """Build one task. Raises InputError if the file or a row is not as published."""
    config, scorer = _TASKS[benchmark.name]
    wording = _wording(config)
    rows = data_files.typed_rows(preparation.file(benchmark, benchmark.files[0]), Row)
    asked = []
    for where, row in islice(rows, preparation.samples_of(benchmark)):
        prompt, cut = questions.shorten(wording(vars(row)), benchmark, preparation)
        asked.append(
            Question(
                id=str(row.id),
                prompt=prompt,
                answers=_answers(row, where) if scorer is choice else _list(row.answer),
                document=sha256(row.context.encode()).hexdigest()[:16],
                shortened_tokens=cut,
            )
        )
    return [
        questions.question_task(benchmark, asked, scorer, max_new_tokens=benchmark.max_new_tokens, length=None),
    ]


def _wording(task: str) -> Callable[[dict[str, Any]], str]:
    """The prompt of a row, in the words of the harness's own task."""
    import lm_eval.tasks
    from lm_eval.tasks import _yaml_loader
    from lm_eval.utils import apply_template

    config = _yaml_loader.load_yaml(Path(lm_eval.tasks.__file__).parent / "infinitebench" / f"{task}.yaml")
    text = config["doc_to_text"]
    render = text if callable(text) else lambda row: apply_template(text, row)
    return lambda row: config.get("description", "") + render(row)


def _list(answer: str | list[str]) -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else tuple(answer)


def _answers(row: Row, where: str) -> tuple[str, str]:
    """The right option of En.MC and its letter."""
    text, *_ = _list(row.answer)
    if len(row.options) != len(LETTERS) or text not in row.options:
        raise InputError(
            f"{where}: field 'options' should be four texts, and 'answer' one of them; {data_files.ADVICE}"
        )
    return text, LETTERS[row.options.index(text)]


def summary(written: str, question: Question) -> float:
    """ROUGE-Lsum F1 against the best reference, without stemming; every line is a sentence."""
    return _rouge().score_multi(list(question.answers), written)["rougeLsum"].fmeasure


@cache
def _rouge() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise InputError(f"En.Sum needs the package rouge_score ({error}); install it, or leave En.Sum out") from error
    return rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=False)


def qa_f1(written: str, question: Question) -> float:
    """F1 of the words written and those of the best answer."""
    return max(_f1(_words(written), _words(answer)) for answer in question.answers)


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(written: list[str], expected: list[str]) -> float:
    common = (Counter(written) & Counter(expected)).total()
    return 2 * common / (len(written) + len(expected)) if common else 0.0


def choice(written: str, question: Question) -> float:
    """1 if the right option of four is chosen, else 0. `answers` are its text and its letter.

    In this order: the first character, if it is A to D; the whole answer, if it is the right option or letter; what
    follows "answer is:", "answer:", "answer is" or "option is" after one character, if it begins with one of the two;
    the first word that is a letter. Case matters.
    """
    right = question.answers
    if written[:1] in tuple(LETTERS):
        return float(written[0] in right)
    if written in right:
        return 1.0
    plain = re.sub(" +", " ", re.sub(r"[\n\"'.,?!{}]", " ", written))
    for phrase in ("answer is:", "answer:", "answer is", "option is"):
        _, found, rest = plain.partition(phrase)
        if found:
            return float(rest[1:].startswith(right))
    # A run of letters such as BC is a word of theirs, but never right.
    return next((float(word in right) for word in plain.split() if word in LETTERS), 0.0)


# Benchmark -> (the harness's task that has its words, its scorer).
_TASKS: dict[str, tuple[str, questions.Scorer]] = {
    "infinitebench_sum": ("infinitebench_longbook_sum_en", summary),
    "infinitebench_qa": ("infinitebench_longbook_qa_en", qa_f1),
    "infinitebench_mc": ("infinitebench_longbook_choice_en", choice),
}
