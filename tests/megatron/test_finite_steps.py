"""Which steps may be applied, by one process; tests/nemo/test_finite_steps.py has the ranks of a training."""

import math

import pytest
import torch

from nemo_longpo.errors import InputError

SOUND, BAD = (torch.tensor([1.0, value]) for value in (2.0, math.nan))


@pytest.fixture
def may_be_applied(alone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")

    def ask(finite, step, gradient=SOUND, losses=(1.0,) * 9):
        finite.begin_step()
        for number in range(len(losses)):
            finite.add_document(f"doc-{number}")
        finite.end_step([torch.tensor(loss) for loss in losses])
        return finite.may_be_applied(step, [SOUND, gradient])

    return ask


def test_only_steps_in_a_row_count(may_be_applied, capsys):
    """After a sound step as many may be left out again; then one more ends the run."""
    from nemo_longpo.megatron.finite_steps import FiniteSteps

    finite = FiniteSteps("skip", 2)
    gradients = (BAD, BAD, SOUND, BAD, BAD)
    found = [may_be_applied(finite, step, gradient) for step, gradient in enumerate(gradients, 1)]
    assert found == [False, False, True, False, False]
    assert "The step is left out, number 2 in a row of 2" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^Step 6: the gradient .* 'doc-7' and 1 more\. 2 step\(s\) before it"):
        may_be_applied(finite, 6, BAD)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_counts_though_the_gradient_is_sound(may_be_applied, loss):
    from nemo_longpo.megatron.finite_steps import FiniteSteps

    with pytest.raises(InputError, match=r"^Step 1: the loss of 'doc-1' is not a finite number\. It was not applied"):
        may_be_applied(FiniteSteps("error", 1), 1, losses=(1.0, loss))
