"""What a worker of `distributed.WorkerPool` runs to test resuming: runs that end before their time."""

from typing import Any

import lightning.pytorch as pl
from megatron_jobs import finetune


class Interrupted(Exception):
    """Stands for whatever ends a process between two steps, and leaves the process to the next job."""


class InterruptAfter(pl.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if trainer.global_step == self.step:
            raise Interrupted


def finetune_until(overrides: dict[str, Any], step: int) -> None:
    """Train up to a step, of which no checkpoint is written any more."""
    try:
        finetune(overrides, checkpoints=True, callbacks=[InterruptAfter(step)])
    except Interrupted:
        return
    raise AssertionError(f"the run was not interrupted after step {step}")
