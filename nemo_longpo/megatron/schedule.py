"""The learning rate over a run: linear warm-up, then a cosine."""

from typing import Any

from nemo.core.optim.lr_scheduler import CosineAnnealing
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler


class CosineOfTheSettings(CosineAnnealing):
    """Takes from a checkpoint only how far the run is; the curve is that of the settings.

    torch's schedulers take over everything, so a finished run that is given more steps would stay at its last rate.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step_count = state_dict["_step_count"]
        self.last_epoch = state_dict["last_epoch"] - 1
        self.step()  # gives the optimizer, whose state came with the old curve's rate, that of the settings
        self._step_count = state_dict["_step_count"]


class WarmupCosine(CosineAnnealingScheduler):
    """A cosine to `min_lr` over `trainer.max_steps`, with a warm-up that is a share of them.

    NeMo's own counts the warm-up in steps, which would have to be changed along with every `trainer.max_steps`. Step s
    of w = ⌊warmup_ratio · max_steps⌋ warm-up steps, from 0, runs at (s + 1) / (w + 1) of the full rate. A run that is
    resumed with other settings follows their curve from its step on.
    """

    def __init__(self, warmup_ratio: float = 0.1, min_lr: float = 0.0):
        super().__init__(constant_steps=0, min_lr=min_lr)
        self.warmup_ratio = warmup_ratio

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
        curve = CosineOfTheSettings(
            optimizer,
            max_steps=self.max_steps,  # set by the strategy
            warmup_steps=int(self.warmup_ratio * self.max_steps),
            min_lr=self.min_lr,
        )
        steps = {"scheduler": curve, "interval": self.interval, "frequency": self.frequency}
        return {"optimizer": optimizer, "lr_scheduler": steps, "monitor": self.monitor}
