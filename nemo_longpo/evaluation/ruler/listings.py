"""RULER's tasks without a needle: chains of variables, common words, frequent coded words.

The same random draws give the text of the official generators, with two exceptions. Variables are different from each
other, and none is called VAR; the official ones may be so by chance. In the list of common words, the solved example
stands in front, as in NVIDIA's generator; the harness leaves it out.
"""

import re
import string
from itertools import cycle, islice, pairwise
from math import pi
from random import Random

import numpy as np

from .recipe import OFFICIAL_SEED, Made
from .wording import ChainWords, CodeWords, ListWords

_HOPS = 4
_FULL_LENGTH = 4096
"""Below this length, the official list repeats its words less often."""
_TOKENS_PER_CODE = 50
_ANSWERS_OF_CODES = 3


class ChainMaker:
    """Variable tracking: one chain of five variables. The size is the number of pieces of noise.

    `example` is a solved question of three-letter variables, whose names are drawn anew for every question.
    """

    def __init__(self, words: ChainWords, letters: int = 5, example: Made | None = None):
        self._words, self._letters, self._example = words, letters, example
        pieces = min(noise.count(".") + 1 for noise in words.noises)
        self.smallest = -(-(_HOPS + 2) // pieces)

    def __call__(self, size: int, rng: Random) -> Made:
        words = self._words
        variables, value, statements = self._chain(rng)
        sentences = [words.noises[0]] * size if len(words.noises) == 1 else rng.choices(words.noises, k=size)
        if len(sentences) <= len(statements):
            pieces = [piece for sentence in sentences for piece in sentence.split(".")]
            sentences = [f"{piece}." if piece.strip() else piece for piece in pieces]
        places = sorted(rng.sample(range(len(sentences)), len(statements)))
        for number, (place, statement) in enumerate(zip(places, statements, strict=True)):
            sentences.insert(place + number, statement)
        context = " ".join(sentences).replace(". \n", ".\n")
        asked = {"query": value, "num_v": len(variables)}
        prompt = words.template.format(context=context, **asked)
        if self._example is not None:
            prompt = f"{_renamed(self._example, rng)}\n\n{prompt}"
        return Made(prompt, words.prefix.format(**asked), tuple(variables))

    def _chain(self, rng: Random) -> tuple[list[str], str, list[str]]:
        words = self._words
        variables: list[str] = []
        while len(variables) <= _HOPS:
            name = rng.choice(words.variables) if words.variables else _letters(rng, self._letters)
            if name not in variables:
                variables.append(name)
        value = rng.choice(words.values) if words.values else str(rng.randint(10000, 99998))
        statements = [words.first.format(variable=variables[0], value=value)]
        for previous, variable in pairwise(variables):
            statements.append(words.link.format(variable=variable, previous=previous))
        return variables, value, statements


def solved(made: Made) -> str:
    """A question with its answer, as the official generator writes it in front of another question."""
    return f"{made.prompt} {made.answer_prefix}  {' '.join(made.answers)}\n\n"


def _renamed(example: Made, rng: Random) -> str:
    names: dict[str, str] = {}
    for old in example.answers:
        new = _letters(rng, len(old))
        while new in names.values() or new == "VAR":
            new = _letters(rng, len(old))
        names[old] = new
    return re.sub("|".join(names), lambda found: names[found.group()], solved(example))


def _letters(rng: Random, count: int) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=count))


class ListMaker:
    """Common words. The size is the number of different words.

    Beyond the end of the list of words, it is the number of words that follow, common ones more often in the same
    proportion: the official generator ends there, at about 120K tokens.
    """

    def __init__(self, words: ListWords, length: int):
        self._words = words
        full = length >= _FULL_LENGTH
        self._example = (40, 10, 3) if full else (20, 3, 1)
        self._repeats = (30, 3) if full else (6, 1)
        self.smallest = words.common + 1

    def __call__(self, size: int, rng: Random) -> Made:
        words, example = self._words, ""
        if words.example:
            different, *repeats = self._example
            listed, common = self._list(different, repeats[0], repeats[1], rng)
            # The official example has no blank in front of its answer.
            example = f"{words.template.format(context=listed, query='')} {words.prefix}{self._items(common)}\n"
        listed, common = self._list(size, *self._repeats, rng)
        return Made(f"{example}{words.template.format(context=listed, query='')}", words.prefix, tuple(common))

    def _list(self, different: int, often: int, seldom: int, rng: Random) -> tuple[str, list[str]]:
        number = self._words.common
        drawn = rng.sample(self._words.words, min(different, len(self._words.words)))
        common, others = drawn[:number], drawn[number:]
        listed = common * often + others * seldom
        listed += islice(cycle(common * (often // seldom) + others), different - len(drawn))
        Random(OFFICIAL_SEED).shuffle(listed)
        return self._items(listed), common

    def _items(self, listed: list[str]) -> str:
        return " ".join(self._words.item.format(number=i, word=word) for i, word in enumerate(listed, 1))


class CodeMaker:
    """Frequent coded words, by a zeta distribution of exponent 2. The size is the number of words that it gives.

    The most frequent one is noise. A size at which the fourth and the fifth are equally frequent is passed over: the
    three that are asked for would not be determined.
    """

    def __init__(self, words: CodeWords, length: int):
        self._words = words
        self._different = max(length // _TOKENS_PER_CODE, _ANSWERS_OF_CODES + 2)
        self.smallest = 27  # of one in 6 pi squared … the fourth occurs once, the fifth not yet

    def __call__(self, size: int, rng: Random) -> Made:
        vocabulary = self._vocabulary(rng)
        counts = _zeta_counts(size, len(vocabulary))
        while counts[_ANSWERS_OF_CODES] == counts[_ANSWERS_OF_CODES + 1]:
            size -= 1
            counts = _zeta_counts(size, len(vocabulary))
        listed = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
        Random(OFFICIAL_SEED).shuffle(listed)
        prompt = self._words.template.format(context=" ".join(listed), query="")
        return Made(prompt, self._words.prefix, tuple(vocabulary[1 : _ANSWERS_OF_CODES + 1]))

    def _vocabulary(self, rng: Random) -> list[str]:
        if self._words.words:
            vocabulary = rng.sample(self._words.words, min(self._different, len(self._words.words)))
        else:
            codes = {"".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(self._different)}
            while len(codes) < self._different:
                codes.add("".join(rng.choices(string.ascii_lowercase, k=6)))
            vocabulary = sorted(codes)
            Random(OFFICIAL_SEED).shuffle(vocabulary)
        vocabulary[0] = self._words.noise
        return vocabulary


def _zeta_counts(total: int, ranks: int) -> list[int]:
    k = np.arange(1, ranks + 1)
    return [int(count) for count in total * (k**-2.0) / (pi**2 / 6)]
