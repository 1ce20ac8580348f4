"""RULER's eight tasks of needles in a haystack. The same random draws give the text of the official generator.

Where the official one may put a key into the text twice, with two values, this one draws again. Essays that are too
short for a length are repeated.
"""

import importlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from random import Random
from typing import Literal
from uuid import UUID

from .official import word_pairs
from .recipe import OFFICIAL_SEED, Made
from .wording import NeedleWords

Kind = Literal["numbers", "words", "uuids"]
_DEPTHS = 40
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class NeedleTask:
    """A row of NVIDIA's synthetic.yaml: `keys` needles of `values` values each, and `queries` keys that are asked."""

    haystack: Literal["repeat", "essay", "needle"]
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask(haystack="repeat"),
    "niah_single_2": NeedleTask(haystack="essay"),
    "niah_single_3": NeedleTask(haystack="essay", value_kind="uuids"),
    "niah_multikey_1": NeedleTask(haystack="essay", keys=4),
    "niah_multikey_2": NeedleTask(haystack="needle"),
    "niah_multikey_3": NeedleTask(haystack="needle", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": NeedleTask(haystack="essay", values=4),
    "niah_multiquery": NeedleTask(haystack="essay", keys=4, queries=4),
}


class Prose:
    """A text of which the first so many words are taken, as sentences."""

    def __init__(self, sentences: Sequence[str]):
        self._sentences = [sentence.split(" ") for sentence in sentences]
        self._ends = list(accumulate(map(len, self._sentences)))

    def beginning(self, words: int) -> list[str]:
        """The sentences of the first `words` words; the last one may be cut. After its end the text begins again."""
        rounds, rest = divmod(words, self._ends[-1])
        whole = bisect_right(self._ends, rest)
        cut = rest - (self._ends[whole - 1] if whole else 0)
        parts = self._sentences * rounds + self._sentences[:whole]
        if cut:
            parts.append(self._sentences[whole][:cut])
        return [" ".join(part) for part in parts]

    def shuffled(self, rng: Random) -> "Prose":
        return Prose(rng.sample([" ".join(sentence) for sentence in self._sentences], len(self._sentences)))


def sentence_splitter() -> str:
    """Return how essays are split into sentences here: "punkt", where nltk has its data, else "regex"."""
    try:
        importlib.import_module("nltk").data.find("tokenizers/punkt_tab")
    except (ImportError, LookupError):
        return "regex"
    return "punkt"


@cache
def essay_prose(text: str) -> Prose:
    """The essays, with single blanks between words.

    The official generator splits sentences by nltk's Punkt. Without its data they end at a full stop, a question mark
    or an exclamation mark before a blank: also behind "Mr." and within "e.g. this", which Punkt keeps together. Only
    the places where a needle may stand are affected.
    """
    plain = re.sub(r"\s+", " ", text).strip()
    if sentence_splitter() == "punkt":
        return Prose(importlib.import_module("nltk").sent_tokenize(plain))
    return Prose(_SENTENCE_END.split(plain))


class NeedleMaker:
    """Questions of a task. The size is the number of words of an essay, else of lines of the haystack."""

    def __init__(self, task: NeedleTask, words: NeedleWords, length: int, essays: Prose | None):
        self._task, self._words, self._essays = task, words, essays
        self._keys = task.keys
        if words.tokens_per_key and task.keys > 1 and words.keys is not None:
            most = min(length // words.tokens_per_key, len(words.keys))
            self._keys = max(task.queries, 2, most)
        self.smallest = 1 if task.haystack == "essay" else self._keys * task.values

    def __call__(self, size: int, rng: Random) -> Made:
        task = self._task
        prose = self._prose(rng) if task.haystack == "essay" else None
        keys: list[str] = []
        values: list[list[str]] = []
        for _ in range(self._keys):
            keys.append(self._draw_key(rng, keys))
            values.append([])
            for _ in range(task.values):
                values[-1].append(self._draw_value(rng, values[-1]))
        needles = [self._needle(key, value) for key, own in zip(keys, values, strict=True) for value in own]
        Random(OFFICIAL_SEED).shuffle(needles)
        if prose is None:
            context = "\n".join(self._lines(size, needles, keys, rng))
        else:
            context = _scattered(prose.beginning(size), needles, rng)
        asked = rng.sample(range(self._keys), task.queries)
        return self._question(context, [keys[i] for i in asked], [values[i] for i in asked])

    def _prose(self, rng: Random) -> Prose:
        if self._words.sentences:
            return Prose(self._words.sentences).shuffled(rng)
        assert self._essays is not None, "tasks.py reads the essays"
        return self._essays

    def _lines(self, size: int, needles: list[str], keys: list[str], rng: Random) -> list[str]:
        if self._task.haystack == "repeat":
            lines = [self._words.repeat] * size
        else:
            lines = [self._needle(self._draw_key(rng, keys), self._draw_value(rng, [])) for _ in range(size)]
        places = sorted(rng.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return lines

    def _question(self, context: str, keys: list[str], values: list[list[str]]) -> Made:
        words, named = self._words, self._words.keys or {}
        answers = tuple(
            words.answer.format(key=key, value=value) for key, own in zip(keys, values, strict=True) for value in own
        )
        *first, last = [named.get(key, key) for key in keys]
        query = f"{words.separator.join(first)}{words.last_separator}{last}" if first else last
        template, prefix, kind = words.template, words.prefix, self._task.value_kind
        if len(answers) == 1:
            template, prefix = words.template_of_one or template, words.prefix_of_one or prefix
            places = {"type_needle_v": kind.removesuffix("s"), "query": query}
        else:
            places = {"type_needle_v": kind, "query": query}
        return Made(template.format(context=context, **places), prefix.format(**places), answers)

    def _needle(self, key: str, value: str) -> str:
        return self._words.needle.format(type_needle_v=self._task.value_kind, key=key, value=value)

    def _draw_key(self, rng: Random, taken: Sequence[str]) -> str:
        own = None if self._words.keys is None else list(self._words.keys)
        return _draw(own, self._task.key_kind, rng, taken)

    def _draw_value(self, rng: Random, taken: Sequence[str]) -> str:
        return _draw(self._words.values, self._task.value_kind, rng, taken)


def _draw(own: Sequence[str] | None, kind: Kind, rng: Random, taken: Sequence[str]) -> str:
    """One of `own` words, or one of a kind, that is not `taken`."""
    while True:
        if own:
            drawn = rng.choice(own)
        elif kind == "numbers":
            drawn = str(rng.randint(10**6, 10**7 - 1))
        elif kind == "words":
            drawn = rng.choice(word_pairs())
        else:
            drawn = str(UUID(int=rng.getrandbits(128), version=4))
        if drawn not in taken:
            return drawn


def _scattered(sentences: list[str], needles: list[str], rng: Random) -> str:
    """Put needles between sentences, at different depths of forty that are spread evenly (more for more needles)."""
    depths = max(_DEPTHS, len(needles))
    percents = [round(100 * i / (depths - 1)) for i in range(depths)]
    places = sorted(int(len(sentences) * (percent / 100)) for percent in rng.sample(percents, len(needles)))
    parts: list[str] = []
    for start, end, needle in zip([0, *places], places, needles, strict=False):
        parts += [" ".join(sentences[start:end]), needle]
    return " ".join([*parts, " ".join(sentences[places[-1] :])])
