"""LongBench-Chat (arXiv 2401.18058): 50 questions about documents of 10K to 100K tokens, 40 of them in English.

Read from `LongBench_Chat/` in the data directory, as the repository THUDM/LongAlign has it: `test_cases.json`,
`few_shots.json` (rated answers that the judge sees), `prompt_fs.txt` (its prompt), and `eval.py`, whose system prompt
is read and which is never run. As there, line breaks of an answer are blanks for the judge, its last rating counts, and
a prompt that is too long is cut in the middle; but only as much as the model makes necessary, and counted. Unlike
there, answers are greedy, a reply without a rating is not asked for again, and a number outside 1 to 10 is none.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_longpo import json_input, typed_fields
from nemo_longpo.data_tools.readers.files import unreadable
from nemo_longpo.errors import InputError, one_line

from .. import data_files, language_model, questions
from ..benchmarks import Benchmark, Preparation
from .client import Messages
from .dialogues import Dialogue, JudgedTask
from .rules import Rating, places, within_limits

# Han, kana and Hangul. The published rows do not name their language.
_NOT_ENGLISH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True)
class _Case:
    idx: int
    prompt: str
    query: str
    answer: str


@dataclass(frozen=True)
class _Shot:
    answer: str
    score: typed_fields.Number


def build(benchmark: Benchmark, preparation: Preparation) -> list[JudgedTask]:
    """All questions, or the first ones.

    Raises InputError if a file is missing, or a row of one cannot be used.
    """
    cases, shots, template, program = (preparation.file(benchmark, name) for name in benchmark.files)
    system, text = _system_prompt(program), _read(template)
    rated = _few_shots(shots)
    dialogues = []
    for where, case in data_files.typed_rows(cases, _Case):
        if not 1 <= case.idx <= len(rated):
            raise InputError(
                f"{where}: idx {case.idx} is none of the {len(rated)} rows of {shots}; {data_files.ADVICE}"
            )
        if benchmark.name.endswith("_en") and _NOT_ENGLISH.search(case.query):
            continue
        own = rated[case.idx - 1]
        _check_template(text, template, 3 + 2 * len(own))
        prompt, cut = questions.shorten(case.prompt, benchmark, preparation)
        dialogues.append(
            Dialogue(
                id=str(case.idx),
                turns=(prompt,),
                shown=(case.query,),
                extra={"answer": case.answer, "shots": own, "shortened": cut > 0},
            )
        )
    if not dialogues:
        raise InputError(f"{cases} holds no question for {benchmark.name}; {data_files.ADVICE}")

    def judge_messages(dialogue: Dialogue, answers: Sequence[str]) -> Messages:
        examples = [value for shot in dialogue.extra["shots"] for value in (shot.answer, shot.score)]
        last = answers[-1].replace("\n", " ")
        prompt = text.format(dialogue.shown[0], dialogue.extra["answer"], *examples, last)
        return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]

    chosen = tuple(dialogues[: preparation.samples_of(benchmark)])
    return [
        JudgedTask(
            benchmark=benchmark,
            dialogues=chosen,
            judge_messages=judge_messages,
            rating=rating,
            rules=language_model.key_of([system, text, [[[shot.answer, shot.score] for shot in own] for own in rated]]),
            shortened=sum(dialogue.extra["shortened"] for dialogue in chosen),
        )
    ]


def rating(reply: str) -> Rating:
    """The first number in the last double brackets."""
    found = re.findall(r"\[\[([^\]]+)\]\]", reply)
    return within_limits(found[-1]) if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def _system_prompt(program: Path) -> str:
    """The text that the published program gives the judge as system prompt."""
    try:
        statements = ast.parse(_read(program)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{program} is no Python program ({one_line(error)}); {data_files.ADVICE}") from error
    for node in statements:
        match node:
            case ast.Assign(targets=[ast.Name(id="system_prompt")], value=ast.Constant(value=str(text))):
                return text
    raise InputError(f"{program} sets no system_prompt to a text; {data_files.ADVICE}")


def _few_shots(path: Path) -> list[list[_Shot]]:
    content = json_input.parse_json(_read(path), str(path), data_files.ADVICE)
    if not isinstance(content, list) or not all(isinstance(row, list) for row in content):
        raise InputError(f"{path} should hold a list of lists of rated answers; {data_files.ADVICE}")
    return [
        [typed_fields.build(_Shot, shot, f"{path}: row {number}", data_files.ADVICE, exact=False) for shot in row]
        for number, row in enumerate(content, 1)
    ]


def _check_template(text: str, path: Path, values: int) -> None:
    found = places(text, str(path))
    if found != [""] * values:
        raise InputError(
            f"{path} should have {values} places {{}}, for question, reference answer, rated answers with their "
            f"ratings, and answer; it has {len(found)}; {data_files.ADVICE}"
        )
