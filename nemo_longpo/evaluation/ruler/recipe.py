"""What every task of RULER makes, and how the size is found that fills a length."""

from collections.abc import Callable
from dataclasses import dataclass
from math import floor
from random import Random
from typing import Protocol

from nemo_longpo.errors import InputError

OFFICIAL_SEED = 42
"""The official generators shuffle needles, words and documents in the same way for every question."""
_PROBES_BY_RATE = 8
_FIRST_STEP = 32


@dataclass(frozen=True)
class Made:
    """A question as it will be asked: the user's message, the first words of the answer, what is right."""

    prompt: str
    answer_prefix: str
    answers: tuple[str, ...]


class Maker(Protocol):
    """Makes a question of a size (sentences, words, documents) from a seeded source of random numbers.

    The next larger size is a little longer. `smallest` is the smallest size of a sound question.
    """

    smallest: int

    def __call__(self, size: int, rng: Random) -> Made: ...


@dataclass(frozen=True)
class Fitted:
    """The largest size whose `tokens` are within the budget: one more is beyond it, or the budget is met exactly."""

    size: int
    tokens: int


def largest_fitting(count: Callable[[int], int], budget: int, smallest: int, guess: int = 0) -> Fitted | None:
    """Find the size that fills a budget of tokens; None if not even the smallest one fits.

    `count(size)` is slow, and nearly proportional to the size. So the next size to try follows from the tokens per size
    so far, from `guess` on, which is the result for another question of this length: three counts or so, where halving
    takes twenty. After eight counts steps are doubled, or the interval is halved, so that no text can make it slow.

    Raises InputError if the tokens do not grow with the size.
    """
    base = count(smallest)
    if base > budget:
        return None
    best, over = Fitted(smallest, base), None
    probe, probes = max(guess, smallest + 1) if guess else smallest + _FIRST_STEP, 0
    last = (smallest, base)
    while best.tokens < budget and (over is None or over - best.size > 1):
        tokens, probes = count(probe), probes + 1
        if tokens <= budget:
            best = Fitted(probe, tokens)
            if probe > smallest + _FIRST_STEP + 16 * budget:
                raise InputError(
                    f"the tokenizer counts {best.tokens:,} tokens for {best.size:,} units of text; it is none for text"
                )
        else:
            over = probe
        # Between the last two sizes, if they are not neighbours: a text may change its nature on the way.
        since = last if abs(probe - last[0]) >= _FIRST_STEP else (smallest, base)
        rate = (tokens - since[1]) / (probe - since[0])
        last = (probe, tokens)
        estimate = probe + floor((budget - tokens) / rate) if rate > 0 else 2 * probe
        if over is None:
            probe = max(estimate, best.size + 2 ** max(0, probes - _PROBES_BY_RATE))
        elif probes > _PROBES_BY_RATE:
            probe = (best.size + over) // 2
        else:
            probe = max(best.size + 1, min(estimate, over - 1))
    return best
