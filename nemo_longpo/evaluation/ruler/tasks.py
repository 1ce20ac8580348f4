"""RULER's tasks for one tokenizer: every question fills its length, and is made once."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from json import dumps
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from nemo_longpo import json_input
from nemo_longpo.errors import InputError
from nemo_longpo.shards.fingerprint import tokenizer_fingerprint
from nemo_longpo.terminal import note

from .. import questions
from ..benchmarks import Benchmark, EvalTask, Preparation
from ..data_files import ADVICE
from . import documents, listings, needles, official, recipe, store, wording

_EXAMPLE_TOKENS = 500
"""The solved example of variable tracking has so many with its answer, where the length allows it."""
_EXAMPLE_STEP = 5
_SHORT_LENGTH = 1024
_MOST_UNKNOWN = 0.1
_MOST_PASSED_OVER = 0.05
"""The share of questions about documents that may be too long for a length; each gives its place to a later one."""
_QUESTION_SETS = {"qa_squad": documents.read_squad, "qa_hotpot": documents.read_hotpotqa}


@dataclass(frozen=True)
class _Task:
    """A task at one length: a maker per question, the answer's tokens, the number of questions that there are."""

    maker: Callable[[int], recipe.Maker]
    max_new_tokens: int
    most: int | None = None


def build(benchmark: Benchmark, preparation: Preparation) -> list[EvalTask]:
    """Make, or read, the questions of a task of RULER, one EvalTask per length.

    A prompt as the model reads it, and `max_new_tokens` after it, fill the length: one sentence, word or document more
    would be too many. The same seed gives the same questions, whatever else is made before.

    Raises InputError if a length is too short for the task, if a file is missing or not as published, if a wording
    file lacks the task, or if the tokenizer does not know the words.
    """
    words = wording.read(preparation.wording) if preparation.wording else official.official()
    builder = _Builder(benchmark, preparation, words)
    return [builder.task(length) for length in preparation.lengths_of(benchmark)]


class _Builder:
    def __init__(self, benchmark: Benchmark, preparation: Preparation, words: wording.Wording):
        self._benchmark, self._preparation, self._words = benchmark, preparation, words
        self._name = benchmark.name.removeprefix("ruler_")

    def task(self, length: int) -> EvalTask:
        benchmark, task = self._benchmark, self._task(length)
        samples = self._preparation.samples_of(benchmark) or 0
        samples = samples if task.most is None else min(samples, task.most)
        made = store.kept(
            self._preparation.questions / benchmark.name,
            self._manifest(length, samples, task),
            lambda: self._make(length, samples, task),
        )
        if passed_over := int(made[-1].id.rpartition(":")[2]) + 1 - len(made):
            note(
                f"longpo: {benchmark.name} at {length:,} tokens: {passed_over} of the first "
                f"{len(made) + passed_over:,} questions take more for the documents that they need; the next "
                "ones take their places"
            )
        scorer = questions.string_match_any if self._name in _QUESTION_SETS else questions.string_match
        return questions.question_task(benchmark, made, scorer, max_new_tokens=task.max_new_tokens, length=length)

    def _task(self, length: int) -> _Task:
        name, words = self._name, self._words
        if name in needles.NEEDLE_TASKS:
            own = self._section(words.needles, "needles")
            row = needles.NEEDLE_TASKS[name]
            essays = self._essays() if row.haystack == "essay" and not own.sentences else None
            return self._of_one(needles.NeedleMaker(row, own, length, essays), own.max_new_tokens)
        if name == "vt":
            chains = self._section(words.chains, "chains")
            return self._of_one(
                listings.ChainMaker(chains, example=self._example(chains, length)), chains.max_new_tokens
            )
        if name == "cwe":
            common = self._section(words.common_words, "common_words")
            return self._of_one(listings.ListMaker(common, length), common.max_new_tokens)
        if name == "fwe":
            codes = self._section(words.frequent_words, "frequent_words")
            return self._of_one(listings.CodeMaker(codes, length), codes.max_new_tokens)
        papers = self._section(words.documents, "documents")
        library = _library(name, self._preparation.file(self._benchmark, self._benchmark.files[0]))
        return _Task(
            lambda number: documents.DocumentMaker(papers, library, number),
            papers.max_new_tokens or self._benchmark.max_new_tokens,
            len(library.asked),
        )

    def _of_one(self, maker: recipe.Maker, max_new_tokens: int | None) -> _Task:
        return _Task(lambda _: maker, max_new_tokens or self._benchmark.max_new_tokens)

    def _section(self, section: Any, name: str) -> Any:
        if section is None:
            raise InputError(
                f"{self._preparation.wording} has no {name!r}, the words of {self._benchmark.name}; add them, or leave "
                "this benchmark out"
            )
        return section

    def _essays(self) -> needles.Prose:
        path = self._preparation.file(self._benchmark, self._benchmark.files[0])
        content = json_input.read_json_object(path, ADVICE)
        if not isinstance(content.get("text"), str) or not content["text"].strip():
            raise InputError(f"{path} should have the essays as one text in the field 'text'; {ADVICE}")
        return needles.essay_prose(content["text"])

    def _example(self, words: wording.ChainWords, length: int) -> recipe.Made | None:
        """The solved question, in official steps of five pieces of noise; below 1,024 tokens the shortest."""
        if not words.example:
            return None
        maker, seed = listings.ChainMaker(words, letters=3), f"{self._preparation.seed} {self._name} {length} example"
        if length < _SHORT_LENGTH:
            return maker(maker.smallest, Random(seed))

        def count(steps: int) -> int:
            made = maker(_EXAMPLE_STEP * steps, Random(seed))
            text = f"{made.prompt} {made.answer_prefix} "
            return len(self._preparation.tokenizer(text)["input_ids"])

        found = recipe.largest_fitting(count, _EXAMPLE_TOKENS - self._benchmark.max_new_tokens, 1)
        return maker(_EXAMPLE_STEP * found.size if found else maker.smallest, Random(seed))

    def _make(self, length: int, samples: int, task: _Task) -> list[questions.Question]:
        made: list[questions.Question] = []
        guess = number = 0
        bar = tqdm(total=samples, desc=f"{self._benchmark.name} {length}", leave=False, disable=None)
        while len(made) < samples and number != task.most:
            maker = task.maker(number)
            seed = f"{self._preparation.seed} {self._name} {length} {number}"

            def count(size: int, maker: recipe.Maker = maker, seed: str = seed) -> int:
                own = maker(size, Random(seed))
                return self._preparation.count_tokens(own.prompt, own.answer_prefix)

            found = recipe.largest_fitting(count, length - task.max_new_tokens, maker.smallest, guess)
            number += 1
            if found is None:
                passed_over = number - len(made)
                if passed_over > _MOST_PASSED_OVER * samples:
                    raise self._too_short(length, samples)
                continue
            guess = found.size
            own = maker(found.size, Random(seed))
            if not made:
                self._check_known(own.prompt)
            made.append(
                questions.Question(
                    id=f"{self._benchmark.name}:{length}:{number - 1}",
                    prompt=own.prompt,
                    answers=own.answers,
                    answer_prefix=own.answer_prefix,
                )
            )
            bar.update()
        bar.close()
        return made

    def _too_short(self, length: int, samples: int) -> InputError:
        """A length that fits may need another example or other repeats than this one, so it is looked for upwards."""
        tried, needed = 0, length
        while needed > tried:
            tried, task = needed, self._task(needed)
            for number in range(samples):
                maker = task.maker(number)
                own = maker(maker.smallest, Random(f"{self._preparation.seed} {self._name} {tried} {number}"))
                tokens = self._preparation.count_tokens(own.prompt, own.answer_prefix) + task.max_new_tokens
                needed = max(needed, tokens)
        return InputError(
            f"{self._benchmark.name} does not fit {length:,} tokens with this tokenizer: its shortest questions take "
            f"{needed:,} with their answers; ask for --lengths from {needed}, or leave this benchmark out"
        )

    def _check_known(self, prompt: str) -> None:
        tokenizer = self._preparation.tokenizer
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        unknown = 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
        if unknown > _MOST_UNKNOWN * len(ids):
            raise InputError(
                f"{self._benchmark.name}: {unknown:,} of {len(ids):,} tokens are words unknown to the tokenizer; "
                "say RULER in words that it knows with --wording FILE (docs/evaluation.md shows one)"
            )

    def _manifest(self, length: int, samples: int, task: _Task) -> dict[str, Any]:
        benchmark, preparation = self._benchmark, self._preparation
        reads_essays = self._words.needles is None or not self._words.needles.sentences
        files = benchmark.files if self._name in _QUESTION_SETS or reads_essays else ()
        return {
            "benchmark": benchmark.name,
            "length": length,
            "samples": samples,
            "seed": preparation.seed,
            "max_new_tokens": task.max_new_tokens,
            "tokenizer_fingerprint": _fingerprint(preparation.tokenizer),
            # The tokens of a chat template and of a system prompt, without and with a beginning of the answer.
            "tokens_of_one_word": [preparation.count_tokens("The", ""), preparation.count_tokens("The", "The")],
            "wording": hashlib.sha256(dumps(asdict(self._words)).encode()).hexdigest(),
            "sources": {name: _file_hash(preparation.file(benchmark, name)) for name in files},
            "sentences": needles.sentence_splitter() if files and self._name not in _QUESTION_SETS else None,
        }


@cache
def _library(name: str, path: Path) -> documents.Library:
    return _QUESTION_SETS[name](path)


@cache
def _fingerprint(tokenizer: Any) -> str:
    return tokenizer_fingerprint(tokenizer)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
