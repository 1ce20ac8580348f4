"""MT-Bench (arXiv 2306.05685) in the published files, judged answer by answer: 80 questions of two turns.

Read from the data directory as FastChat lays it out (fastchat/llm_judge/data): `mt_bench/question.jsonl`,
`mt_bench/reference_answer/NAME.jsonl`, `judge_prompts.jsonl`. Ratings are read by the rule of FastChat's
llm_judge/common.py. Unlike there, answers are greedy in every category, a reply without a rating is not asked for
again (with temperature 0 it would be the same), and a number outside 1 to 10 is no rating.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo.errors import InputError
from nemo_longpo.typed_fields import Names

from .. import data_files, language_model
from ..benchmarks import Benchmark, Preparation
from .client import Messages
from .dialogues import Dialogue, JudgedTask
from .rules import Rating, check_places, fill, within_limits

WITH_REFERENCE = frozenset({"math", "reasoning", "coding"})
_PUBLISHED_REFERENCE = "gpt-4.jsonl"
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
# Whether the question has a reference, and turns -> name of the prompt in judge_prompts.jsonl.
_PROMPTS = {
    (False, 1): "single-v1",
    (True, 1): "single-math-v1",
    (False, 2): "single-v1-multi-turn",
    (True, 2): "single-math-v1-multi-turn",
}


@dataclass(frozen=True)
class _Question:
    question_id: int
    category: str
    turns: Names


@dataclass(frozen=True)
class _Choice:
    turns: Names


@dataclass(frozen=True)
class _Reference:
    question_id: int
    choices: tuple[_Choice, ...]


@dataclass(frozen=True)
class _JudgePrompt:
    name: str
    system_prompt: str
    prompt_template: str


def build(benchmark: Benchmark, preparation: Preparation) -> list[JudgedTask]:
    """All questions, or as many as asked for, from every category in turn.

    Raises InputError if a file is missing, or a row of one cannot be used.
    """
    questions, references, prompts = (preparation.file(benchmark, name) for name in benchmark.files)
    templates = _templates(prompts)
    dialogues = _across_categories(_dialogues(questions, _references(references)))

    def judge_messages(dialogue: Dialogue, answers: Sequence[str]) -> Messages:
        prompt = templates["reference" in dialogue.extra, len(answers)]
        return [
            {"role": "system", "content": prompt.system_prompt},
            {"role": "user", "content": fill(prompt.prompt_template, str(prompts), **_values(dialogue, answers))},
        ]

    return [
        JudgedTask(
            benchmark=benchmark,
            dialogues=tuple(dialogues[: preparation.samples_of(benchmark)]),
            judge_messages=judge_messages,
            rating=rating,
            rules=language_model.key_of(
                [[prompt.system_prompt, prompt.prompt_template] for prompt in templates.values()]
            ),
        )
    ]


def rating(reply: str) -> Rating:
    """The first number in double brackets, or else in single ones."""
    for pattern in _RATINGS:
        if found := pattern.search(reply):
            return within_limits(found[1])
    return None


def _values(dialogue: Dialogue, answers: Sequence[str]) -> dict[str, str]:
    """What fills the judge's prompt; with one turn, its places for question and answer have no number."""
    numbers = [""] if len(answers) == 1 else ["_1", "_2"]
    values = {f"question{number}": text for number, text in zip(numbers, dialogue.turns, strict=False)}
    values |= {f"answer{number}": text for number, text in zip(numbers, answers, strict=True)}
    references = dialogue.extra.get("reference", ())[: len(answers)]
    return values | {f"ref_answer_{number}": text for number, text in enumerate(references, 1)}


def _templates(path: Path) -> dict[tuple[bool, int], _JudgePrompt]:
    rows = {prompt.name: prompt for _, prompt in data_files.typed_rows(path, _JudgePrompt)}
    chosen = {}
    for (reference, turns), name in _PROMPTS.items():
        if name not in rows:
            raise InputError(f"{path} has no prompt {name!r}; {data_files.ADVICE}")
        chosen[reference, turns] = rows[name]
        example = Dialogue(id="", turns=("",) * turns, extra={"reference": [""] * turns} if reference else {})
        places = set(_values(example, [""] * turns))
        check_places(rows[name].prompt_template, f"{path}: the template of {name}", places)
    return chosen


def _references(directory: Path) -> dict[int, Names]:
    """The published reference answers, or those of the only file that is there."""
    files = sorted(directory.glob("*.jsonl"))
    published = [path for path in files if path.name == _PUBLISHED_REFERENCE] or files
    if len(published) != 1:
        raise InputError(
            f"{directory} should hold {_PUBLISHED_REFERENCE}, or one file of reference answers; it holds {len(files)}"
        )
    found = {}
    for where, row in data_files.typed_rows(published[0], _Reference):
        if not row.choices:
            raise InputError(f"{where}: field 'choices' should hold an answer; {data_files.ADVICE}")
        found[row.question_id] = row.choices[0].turns
    return found


def _dialogues(path: Path, references: dict[int, Names]) -> list[Dialogue]:
    found: dict[int, Dialogue] = {}
    for where, row in data_files.typed_rows(path, _Question):
        if len(row.turns) not in (1, 2):
            raise InputError(
                f"{where}: field 'turns' should hold one or two questions, not {len(row.turns)}; {data_files.ADVICE}"
            )
        if row.question_id in found:
            raise InputError(f"{where}: a row above has the question_id {row.question_id} too; {data_files.ADVICE}")
        needed = row.category in WITH_REFERENCE
        reference = references.get(row.question_id, [])
        if needed and len(reference) < len(row.turns):
            raise InputError(
                f"{where}: a question of category {row.category} is judged against a reference, and the reference "
                f"answers have {len(reference)} of {len(row.turns)} turns for question_id {row.question_id}; "
                f"{data_files.ADVICE}"
            )
        found[row.question_id] = Dialogue(
            id=str(row.question_id),
            turns=tuple(row.turns),
            category=row.category,
            extra={"reference": reference} if needed else {},
        )
    if not found:
        raise InputError(f"{path} holds no question; {data_files.ADVICE}")
    return list(found.values())


def _across_categories(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """The first of each category, then the second of each: a few questions are of all kinds."""
    seen: dict[str, int] = defaultdict(int)
    rank = {}
    for dialogue in dialogues:
        rank[dialogue.id] = seen[dialogue.category]
        seen[dialogue.category] += 1
    return sorted(dialogues, key=lambda dialogue: rank[dialogue.id])
