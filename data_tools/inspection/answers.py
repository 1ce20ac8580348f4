"""Both answers of a turn side by side, every token with what the reference model thought of it."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .markup import Html, element, join
from .measures import logp_sum
from .numbers import minus, number, signed
from .similarity import differences
from .token_text import Group, TokenText

SHOWN_START, SHOWN_END = 384, 128  # tokens of a long answer; those between are counted and summed
# A token's shade, by its probability: the lower, the darker.
SHADES = (0.001, 0.01, 0.05, 0.2, 0.5, 0.9)
_VISIBLE = str.maketrans({"\n": "↵\n", "\t": "⇥\t", "\r": "␍"})

Ids = Sequence[int]


def answer_pair(
    answers: tuple[Ids, Ids], logps: tuple[np.ndarray, np.ndarray], leads: tuple[Ids, Ids], text: TokenText
) -> Html:
    """All tuples are (chosen, rejected). `leads`, the tokens before an answer, may change how its first one reads."""
    sides = zip(("chosen", "rejected"), answers, logps, leads, differences(*answers), strict=True)
    return element("div", *(_answer(*side, text) for side in sides), class_="pair")


def legend() -> Html:
    """What the shades mean, from sure to surprised."""
    bounds = [f"{100 * bound:g} %" for bound in SHADES]
    names = [f"under {bounds[0]}", *(f"{low} to {high}" for low, high in pairwise(bounds))]
    names.append(f"{bounds[-1]} and over")
    shades = [element("span", name, class_=f"swatch q{len(SHADES) - place}") for place, name in enumerate(names)]
    return join(*reversed(shades))


def _answer(name: str, ids: Ids, logps: np.ndarray, lead: Ids, differ: list[bool], text: TokenText) -> Html:
    total = logp_sum(logps)
    facts = f"{number(len(ids))} tokens · Σ log p {signed(total)} · mean {signed(total / max(len(ids), 1))}"
    return element(
        "article",
        element("h5", element("span", name, class_=f"key {name}"), element("span", facts, class_="facts")),
        element(
            "div",
            *_tokens(ids, logps, lead, differ, text),
            class_=f"answer {name}",
            dir="auto",
            tabindex=0,
            role="group",
            aria_label=f"{name} answer, {facts}",
        ),
    )


def _tokens(ids: Ids, logps: np.ndarray, lead: Ids, differ: list[bool], text: TokenText) -> list[Html]:
    """One `<i>` per token, or per tokens that make one character."""
    every = [*lead, *ids]
    parts: list[Html] = []
    shown = text.elided(every, len(lead), len(every), SHOWN_START, SHOWN_END)
    for place, (start, end) in enumerate(shown):
        if place:
            left_out = logps[shown[0][1] - len(lead) : start - len(lead)]
            note = f"… {number(len(left_out))} tokens, Σ log p {signed(logp_sum(left_out))}, not shown …"
            parts.append(element("span", note, class_="elided", dir="ltr"))
        for group in text.groups(every, start, end):
            at = slice(group.start - len(lead), group.end - len(lead))
            parts.append(_token(group, ids[at], logps[at], any(differ[at])))
    return parts


def _token(group: Group, ids: Ids, logps: np.ndarray, differs: bool) -> Html:
    probability = math.exp(min(logp_sum(logps), 0.0))
    shade = f"q{len(SHADES) - bisect_right(SHADES, probability)}"
    classes = shade + " d" * differs + " s" * group.special + " w" * _is_blank(group.text)
    notes = [
        f"token {token}: log p {minus(f'{logp:.4f}')}, p {math.exp(min(logp, 0.0)):.3g}"
        for token, logp in zip(ids, logps.tolist(), strict=True)
    ]
    return element("i", visible(group.text), class_=classes, title="\n".join(notes))


def visible(text: str) -> str:
    """Whitespace that one could overlook, spelled out: line breaks, tabs, tokens of nothing but spaces."""
    return "·" * len(text) if _is_blank(text) else text.translate(_VISIBLE) or "∅"


def _is_blank(text: str) -> bool:
    return text != "" and not text.strip(" ")
