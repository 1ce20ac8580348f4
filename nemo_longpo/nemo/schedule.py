"""The learning rate over a run: linear warm-up, then a cosine."""

from typing import Any

from nemo.core.optim.lr_scheduler import CosineAnnealing
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler

from nemo_longpo.errors import InputError


class CosineOfTheSettings(CosineAnnealing):
    """A cosine that takes only the step from a checkpoint; the curve follows the settings.

    torch's schedulers restore everything, so a finished run that is given more steps would stay at its last rate.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step_count = state_dict["_step_count"]
        self.last_epoch = state_dict["last_epoch"] - 1
        self.step()  # sets the optimizer's rate from the settings; its restored state has the old curve's
        self._step_count = state_dict["_step_count"]


class WarmupCosine(CosineAnnealingScheduler):
    """A cosine to `min_lr` over `trainer.max_steps`; the share `warmup_ratio` of these steps is warm-up.

    NeMo's own counts the warm-up in steps, so it would have to change along with every `trainer.max_steps`. Step s
    of w = ⌊warmup_ratio · max_steps⌋ warm-up steps, from 0, runs at (s + 1) / (w + 1) of the full rate. A run that is
    resumed with other settings follows the new curve from its current step.

    Raises InputError for a share that is not from 0 to below 1, and, when the run begins, for a run of no steps or of
    no end: the curve would have no length.
    """

    def __init__(self, warmup_ratio: float = 0.1, min_lr: float = 0.0):
        super().__init__(constant_steps=0, min_lr=min_lr)
        if not 0 <= warmup_ratio < 1:
            raise InputError(
                f"optim.lr_scheduler.warmup_ratio is {warmup_ratio}; give a share of the steps, from 0 to below 1."
            )
        self.warmup_ratio = warmup_ratio

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
        if self.max_steps < 1:
            raise InputError(f"trainer.max_steps is {self.max_steps}; give the steps of the whole run, 1 or more.")
        curve = CosineOfTheSettings(
            optimizer,
            max_steps=self.max_steps,  # set by the strategy
            warmup_steps=int(self.warmup_ratio * self.max_steps),
            min_lr=self.min_lr,
        )
        steps = {"scheduler": curve, "interval": self.interval, "frequency": self.frequency}
        return {"optimizer": optimizer, "lr_scheduler": steps, "monitor": self.monitor}
