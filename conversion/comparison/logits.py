"""Two models' answers to the same tokens, compared: logits, and the residual stream layer by layer.

Shape legend: S tokens, H hidden size, V vocabulary, N states (see `forward`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

ROWS = 64
"""Tokens whose logits are compared at once."""


def rank(difference: float) -> float:
    """NaN is worse than any number."""
    return math.inf if math.isnan(difference) else difference


@dataclass(frozen=True)
class SequenceComparison:
    """`largest` is max |a − b| over all logits, `relative` the same of a token over its max |a|, the worst token's.

    `same_choice` is the share of tokens for which both prefer the same next one; `divergence` is the mean of
    KL(A ‖ B) in nats.
    """

    name: str
    tokens: int
    largest: float
    relative: float
    same_choice: float
    divergence: float


@dataclass(frozen=True)
class LogitsComparison:
    """`states` holds, per state, the worst token's ‖a − b‖ / ‖a‖.

    `common_rope`: B was computed with A's rotary settings. `rounded_to`: weights of both were rounded first, because
    the two sides' dtypes differ.
    """

    tolerance: float
    common_rope: bool
    rounded_to: str | None
    sequences: list[SequenceComparison]
    states: list[float]

    @property
    def passed(self) -> bool:
        """False also where numbers are not finite."""
        return all(sequence.relative <= self.tolerance for sequence in self.sequences)

    @property
    def first_apart(self) -> int | None:
        """The first state that differs by more than the tolerance."""
        return next((place for place, value in enumerate(self.states) if not value <= self.tolerance), None)

    @property
    def worst_state(self) -> int:
        return max(range(len(self.states)), key=lambda place: rank(self.states[place]))

    @property
    def worst_sequence(self) -> SequenceComparison:
        return max(self.sequences, key=lambda sequence: rank(sequence.relative))

    def name_of(self, state: int) -> str:
        if state == 0:
            return "the embedding"
        if state == len(self.states) - 1:
            return f"layer {state - 1} and the final norm"
        return f"layer {state - 1}"


def compare_outputs(a: Path, b: Path, names: Sequence[str]) -> tuple[list[SequenceComparison], list[float]]:
    """Of two output directories of jobs: each sequence, by its name, and the states over all of them."""
    sequences, states = [], []
    for number, name in enumerate(names):
        file = f"{number}.safetensors"
        with safe_open(str(a / file), "pt") as ours, safe_open(str(b / file), "pt") as theirs:
            states.append(_worst_rows(ours.get_tensor("states"), theirs.get_tensor("states")))
            sequences.append(_compare_logits(name, ours.get_tensor("logits"), theirs.get_tensor("logits")))
    return sequences, torch.stack(states).amax(0).tolist()


def _worst_rows(a_NSH: Tensor, b_NSH: Tensor) -> Tensor:
    """[N]; amax and this division let NaN through."""
    return ((a_NSH - b_NSH).norm(dim=-1) / a_NSH.norm(dim=-1).clamp(min=torch.finfo().tiny)).amax(-1)


def _compare_logits(name: str, a_SV: Tensor, b_SV: Tensor) -> SequenceComparison:
    largest, relative, same, divergence = [], [], [], []
    for a, b in zip(a_SV.split(ROWS), b_SV.split(ROWS), strict=True):
        distance = (a - b).abs().amax(-1)
        largest.append(distance)
        relative.append(distance / a.abs().amax(-1).clamp(min=torch.finfo().tiny))
        same.append(a.argmax(-1) == b.argmax(-1))
        log_a, log_b = a.double().log_softmax(-1), b.double().log_softmax(-1)
        divergence.append((log_a.exp() * (log_a - log_b)).sum(-1))
    return SequenceComparison(
        name,
        len(a_SV),
        float(torch.cat(largest).amax()),
        float(torch.cat(relative).amax()),
        float(torch.cat(same).float().mean()),
        float(torch.cat(divergence).mean()),
    )
