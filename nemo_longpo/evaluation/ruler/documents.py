"""RULER's questions about one of many documents, from SQuAD and HotpotQA. The same random draws give the official text.

Where a length takes more documents than a file has, they are repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from nemo_longpo import json_input, typed_fields
from nemo_longpo.errors import InputError

from ..data_files import ADVICE
from .recipe import OFFICIAL_SEED, Made
from .wording import DocumentWords


@dataclass(frozen=True)
class Asked:
    """A question, its answers, the documents that it needs, and documents about the same."""

    question: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class Library:
    """The questions of a file, and its documents in alphabetical order."""

    asked: tuple[Asked, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class _Answer:
    text: str


@dataclass(frozen=True)
class _SquadQuestion:
    question: str
    answers: tuple[_Answer, ...]
    is_impossible: bool = False


@dataclass(frozen=True)
class _Paragraph:
    context: str
    qas: tuple[_SquadQuestion, ...]


@dataclass(frozen=True)
class _Article:
    paragraphs: tuple[_Paragraph, ...]


@dataclass(frozen=True)
class _Squad:
    data: tuple[_Article, ...]


def read_squad(path: Path) -> Library:
    """Read `squad.json`, SQuAD 2.0 as published; questions without an answer are left out."""
    squad = typed_fields.build(_Squad, json_input.read_json_object(path, ADVICE), str(path), ADVICE, exact=False)
    documents = tuple(sorted({paragraph.context for article in squad.data for paragraph in article.paragraphs}))
    number = {document: i for i, document in enumerate(documents)}
    asked = []
    for article in squad.data:
        own = [number[paragraph.context] for paragraph in article.paragraphs]
        for paragraph in article.paragraphs:
            needed = number[paragraph.context]
            related = tuple(i for i in own if i != needed)
            for question in paragraph.qas:
                if not question.is_impossible:
                    answers = tuple(answer.text for answer in question.answers)
                    asked.append(Asked(question.question, answers, (needed,), related))
    return _checked(path, Library(tuple(asked), documents))


def read_hotpotqa(path: Path) -> Library:
    """Read `hotpotqa.json`, the development set of HotpotQA with distractors as published."""
    rows = list(_hotpot_rows(path))
    documents = tuple(sorted({document for _, _, own in rows for document in own}))
    number = {document: i for i, document in enumerate(documents)}
    asked = (Asked(question, (answer,), tuple(number[document] for document in own)) for question, answer, own in rows)
    return _checked(path, Library(tuple(asked), documents))


def _hotpot_rows(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    content: Any = json_input.parse_json(path.read_bytes(), str(path), ADVICE)
    if not isinstance(content, list):
        raise InputError(f"{path} should hold a list of questions; {ADVICE}")
    for number, row in enumerate(content, 1):
        try:
            documents = [f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]]
            question, answer = row["question"], row["answer"]
        except (KeyError, TypeError, ValueError):
            question = answer = None
        if not isinstance(question, str) or not isinstance(answer, str):
            raise InputError(
                f"{path}: question {number} should have question, answer, and context as pairs of a title and "
                f"sentences; {ADVICE}"
            )
        yield question, answer, documents


def _checked(path: Path, library: Library) -> Library:
    if not library.asked:
        raise InputError(f"{path} has no question with an answer; {ADVICE}")
    return library


class DocumentMaker:
    """One question. The size is the number of documents, those that it needs included."""

    def __init__(self, words: DocumentWords, library: Library, number: int):
        self._words, self._library, self._asked = words, library, library.asked[number]
        self.smallest = len(self._asked.needed)

    def __call__(self, size: int, rng: Random) -> Made:
        documents = self._documents(size, rng)
        Random(OFFICIAL_SEED).shuffle(documents)
        words = self._words
        context = "\n\n".join(words.document.format(i=i, document=text) for i, text in enumerate(documents, 1))
        prompt = words.template.format(context=context, query=self._asked.question)
        return Made(prompt, words.prefix, self._asked.answers)

    def _documents(self, size: int, rng: Random) -> list[str]:
        every, needed, related = self._library.documents, list(self._asked.needed), list(self._asked.related)
        if size >= len(every):
            rounds, rest = divmod(size, len(every))
            return [*every * rounds, *every[:rest]]
        others = size - len(needed)
        if others > len(related):
            known = {*needed, *related}
            free = [i for i in range(len(every)) if i not in known]
            chosen = needed + related + rng.sample(free, others - len(related))
        else:
            chosen = needed + rng.sample(related, others)
        return [every[i] for i in chosen]
