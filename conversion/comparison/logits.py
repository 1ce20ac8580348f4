"""Two models' outputs for the same tokens, compared: logits, and the residual stream layer by layer.

Shape legend: S tokens, H hidden size, V vocabulary, N states: the embedding, then the residual stream behind every
layer but the last, then the final norm's output.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

Forward = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Token ids [S] → states [N, S, H] and logits [S, V], fp32."""

ROWS = 64
"""Tokens whose logits are compared at once."""


@dataclass(frozen=True, kw_only=True)
class SequenceComparison:
    """How much the logits of one sequence differ.

    `largest` is max |a − b| over all logits; `relative` is the worst token's max |a − b| / max |a|. `same_choice` is
    the share of tokens for which both prefer the same next one; `divergence` is the mean of KL(A ‖ B) in nats.
    """

    name: str
    tokens: int
    largest: float
    relative: float
    same_choice: float
    divergence: float


@dataclass(frozen=True, kw_only=True)
class LogitsComparison:
    """All sequences; `states` holds, per state, the worst token's ‖a − b‖ / ‖a‖.

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
        return max(range(len(self.states)), key=lambda place: _nan_is_worst(self.states[place]))

    @property
    def worst_relative(self) -> float:
        return max((sequence.relative for sequence in self.sequences), key=_nan_is_worst)

    def name_of(self, state: int) -> str:
        if state == 0:
            return "the embedding"
        return f"layer {state - 1}" + " and the final norm" * (state == len(self.states) - 1)


def _nan_is_worst(difference: float) -> float:
    return math.inf if math.isnan(difference) else difference


def compare_outputs(a: Path, b: Path, names: Sequence[str]) -> tuple[list[SequenceComparison], list[float]]:
    """Compare two output directories of logits jobs: each sequence, by its name, and the states over all of them."""
    sequences, states = [], []
    for number, name in enumerate(names):
        file = f"{number}.safetensors"
        with safe_open(str(a / file), "pt") as ours, safe_open(str(b / file), "pt") as theirs:
            a_NSH, b_NSH = ours.get_tensor("states"), theirs.get_tensor("states")
            # amax and this division pass NaN on
            states.append(((a_NSH - b_NSH).norm(dim=-1) / _positive(a_NSH.norm(dim=-1))).amax(-1))
            sequences.append(_compare_logits(name, ours.get_tensor("logits"), theirs.get_tensor("logits")))
    return sequences, torch.stack(states).amax(0).tolist()


def _compare_logits(name: str, a_SV: torch.Tensor, b_SV: torch.Tensor) -> SequenceComparison:
    largest, relative, same, divergence = [], [], [], []
    for a, b in zip(a_SV.split(ROWS), b_SV.split(ROWS), strict=True):
        distance = (a - b).abs().amax(-1)
        largest.append(distance)
        relative.append(distance / _positive(a.abs().amax(-1)))
        same.append(a.argmax(-1) == b.argmax(-1))
        log_a, log_b = a.double().log_softmax(-1), b.double().log_softmax(-1)
        divergence.append((log_a.exp() * (log_a - log_b)).sum(-1))
    return SequenceComparison(
        name=name,
        tokens=len(a_SV),
        largest=float(torch.cat(largest).amax()),
        relative=float(torch.cat(relative).amax()),
        same_choice=float(torch.cat(same).float().mean()),
        divergence=float(torch.cat(divergence).mean()),
    )


def _positive(norms: torch.Tensor) -> torch.Tensor:
    return norms.clamp(min=torch.finfo().tiny)
