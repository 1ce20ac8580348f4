"""The numbers of a comparison, and the first layer that differs."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_longpo.conversion.comparison import logits
from nemo_longpo.conversion.comparison.logits import LogitsComparison, compare_outputs


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(logits, "ROWS", 2)


@pytest.fixture
def answers(tmp_path) -> tuple[Path, Path]:
    """Two directories with the same answers to two sequences: 4 states, 5 and 3 tokens, hidden 6, vocabulary 8."""
    generator = torch.Generator().manual_seed(0)
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
    for number, tokens in enumerate((5, 3)):
        answer = {
            "states": torch.randn(4, tokens, 6, generator=generator),
            "logits": torch.randn(tokens, 8, generator=generator),
        }
        for side in ("a", "b"):
            save_file(answer, tmp_path / side / f"{number}.safetensors")
    return tmp_path / "a", tmp_path / "b"


def compare(a: Path, b: Path, tolerance: float = 1e-5) -> LogitsComparison:
    sequences, states = compare_outputs(a, b, ["first", "second"])
    return LogitsComparison(tolerance=tolerance, common_rope=False, rounded_to=None, sequences=sequences, states=states)


def change(directory: Path, number: int, what: str, place: tuple[int, ...], value: float) -> torch.Tensor:
    """Add to one value of an answer; return the original values."""
    path = directory / f"{number}.safetensors"
    answer = load_file(path)
    before = answer[what].clone()
    answer[what][place] += value
    save_file(answer, path)
    return before


def test_the_same_answers(answers):
    found = compare(*answers)
    assert found.passed
    assert found.first_apart is None
    assert found.states == [0.0] * 4
    assert [(part.name, part.tokens) for part in found.sequences] == [("first", 5), ("second", 3)]
    assert all((part.largest, part.relative, part.same_choice) == (0, 0, 1) for part in found.sequences)
    assert all(abs(part.divergence) < 1e-15 for part in found.sequences)


def test_changed_logit_is_reported(answers):
    a, b = answers
    lowest = int(load_file(a / "0.safetensors")["logits"][4].argmin())
    before = change(b, 0, "logits", (4, lowest), 9.0)
    first, second = compare(a, b).sequences
    assert not compare(a, b).passed
    assert first.largest == pytest.approx(9)
    assert first.relative == pytest.approx(9 / before[4].abs().max().item())
    assert first.same_choice == pytest.approx(0.8)
    changed = before.clone()
    changed[4, lowest] += 9
    kl = torch.nn.functional.kl_div(
        changed.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert first.divergence == pytest.approx(kl.item(), rel=1e-5)
    assert second.largest == 0
    assert compare(a, b, tolerance=first.relative * 1.01).passed


def test_the_first_and_the_worst_layer(answers):
    a, b = answers
    small = change(b, 1, "states", (1, 2, 0), 1e-3)
    large = change(b, 0, "states", (2, 1, 3), 1.0)
    found = compare(a, b)
    assert found.states == pytest.approx(
        [0, 1e-3 / small[1, 2].norm().item(), 1 / large[2, 1].norm().item(), 0], rel=1e-3
    )
    assert (found.first_apart, found.worst_state) == (1, 2)
    names = [found.name_of(place) for place in range(4)]
    assert names == ["the embedding", "layer 0", "layer 1", "layer 2 and the final norm"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("sides", [("a",), ("a", "b")])
def test_nan_logits_fail(answers, value, sides):
    for side in sides:
        change(answers[0].parent / side, 1, "logits", (0, 0), value)
        change(answers[0].parent / side, 1, "states", (3, 0, 0), value)
    found = compare(*answers)
    assert not found.passed
    assert found.first_apart == 3
    assert found.worst_state == 3
