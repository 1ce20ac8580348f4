"""A step whose loss or gradient is not finite never reaches the weights: it ends the run, or is left out.

Megatron's own check (`check_for_nan_in_grad`) raises on the one rank that finds it, in the middle of a backward, while
the others wait; its optimizer leaves out a step only under a loss scale. Here all ranks look after the backward, agree,
and name the documents.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_longpo.errors import InputError
from nemo_longpo.run_log import LOG

from . import topology

NonFinite = Literal["error", "skip"]
_MOST_NAMES = 8


class FiniteSteps:
    """The policy of a run: "error" ends it, "skip" leaves out up to `most` steps in a row and then ends it.

    The training loop tells it the documents of a step on this rank and their losses. A step that is left out counts as
    a step: its documents are not repeated, and the learning rate goes on.
    """

    def __init__(self, policy: NonFinite, most: int):
        self.policy = policy
        self.most = most
        self.left_out = 0
        """Steps left out in a row."""
        self._documents: list[str] = []
        self._losses: Sequence[Tensor] = ()

    def begin_step(self) -> None:
        self._documents, self._losses = [], ()

    def add_document(self, doc_id: str) -> None:
        self._documents.append(doc_id)

    def end_step(self, losses: Sequence[Tensor]) -> None:
        """Note the losses; there are none but in the last pipeline stage."""
        self._losses = losses

    def may_be_applied(self, step: int, gradients: Sequence[Tensor]) -> bool:
        """Whether the losses of the step and these gradients are finite on all ranks, which must all call this.

        A norm over the gradients shows it, as in Megatron: one reading of them, and no memory. Raises InputError on all
        ranks if they are not finite and the step may not be left out.
        """
        device = torch.cuda.current_device()
        bad = torch.stack(
            [
                _is_bad(torch.stack(list(self._losses)) if self._losses else torch.zeros(()), device),
                _is_bad(torch.nn.utils.get_total_norm(gradients), device),
            ]
        )
        dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        loss, gradient = bad.tolist()
        if not loss and not gradient:
            self.left_out = 0
            return True
        problem = f"Step {step}: {self._describe()}"
        if self.policy == "error":
            raise InputError(
                f"{problem}. It was not applied, and checkpoints before it are sound; look at the weights that the run "
                "starts from, at optim.config.lr and at these documents, or set trainer.strategy.non_finite_steps=skip "
                "to leave such steps out."
            )
        self.left_out += 1
        if self.left_out > self.most:
            raise InputError(
                f"{problem}. {self.most} step(s) before it were left out as well, as many in a row as "
                "trainer.strategy.max_skipped_steps allows; look at optim.config.lr and at the weights that the run "
                "starts from."
            )
        LOG.warning(f"{problem}. The step is left out, number {self.left_out} in a row of {self.most}")
        return False

    def _describe(self) -> str:
        """Say what is not finite, and in which documents. All ranks must call it."""
        finite = [bool(torch.isfinite(loss)) for loss in self._losses]
        ranks = topology.gather_from_all((self._documents, finite))
        every = [document for documents, _ in ranks for document in documents]
        at_fault = [
            document
            for documents, finite in ranks
            for document, is_finite in zip(documents, finite, strict=False)  # stages before the last know no loss
            if not is_finite
        ]
        if at_fault:
            return f"the loss of {_names(at_fault)} is not a finite number"
        return f"the gradient is not a finite number, though every loss is; its documents are {_names(every)}"


def _is_bad(values: Tensor, device: int) -> Tensor:
    """1 if a value is not finite, else 0; fp32 []."""
    return (~torch.isfinite(values).all()).float().to(device)


def _names(documents: Iterable[str]) -> str:
    names = [repr(name) for name in dict.fromkeys(documents)]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
