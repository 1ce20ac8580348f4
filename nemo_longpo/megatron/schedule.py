"""The learning rate over a run: linear warm-up, then a cosine."""

from typing import Any

from nemo.lightning.pytorch.optim import CosineAnnealingScheduler


class WarmupCosine(CosineAnnealingScheduler):
    """NeMo's cosine to `min_lr` over `trainer.max_steps`, with a warm-up that is a share of them.

    NeMo's own counts the warm-up in steps, which would have to be changed along with every `trainer.max_steps`. Step s
    of w = ⌊warmup_ratio · max_steps⌋ warm-up steps, from 0, runs at (s + 1) / (w + 1) of the full rate.
    """

    def __init__(self, warmup_ratio: float = 0.1, min_lr: float = 0.0):
        super().__init__(constant_steps=0, min_lr=min_lr)
        self.warmup_ratio = warmup_ratio

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
        self.warmup_steps = int(self.warmup_ratio * self.max_steps)  # the strategy has set max_steps by now
        return super().scheduler(model, optimizer)
