"""What a worker of `distributed.WorkerPool` runs to test resuming: runs that end before their time."""

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from nemo.lightning import MegatronStrategy
from support.jobs.megatron_jobs import finetune


class Interrupted(BaseException):
    """Stands for whatever ends a process, and leaves it to the next job. NeMo survives what is only an Exception."""


class InterruptAfter(pl.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if trainer.global_step == self.step:
            raise Interrupted


class CountSaves(pl.Callback):
    """Note the step of every checkpoint that is written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save_checkpoint(self, trainer: pl.Trainer, *args) -> None:
        self.steps.append(trainer.global_step)


def finetune_until(overrides: dict[str, Any], step: int) -> None:
    """Train up to a step, of which no checkpoint is written any more."""
    _run_until_interrupted(overrides, InterruptAfter(step))


def finetune_until_removal(overrides: dict[str, Any]) -> None:
    """Train until the first checkpoint that was replaced is half removed."""

    def remove_half(strategy: MegatronStrategy, path: str | Path) -> None:
        if strategy.is_global_zero:
            shutil.rmtree(Path(path).with_suffix("") / "weights")
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MegatronStrategy, "remove_checkpoint", remove_half)
        _run_until_interrupted(overrides)


def _run_until_interrupted(overrides: dict[str, Any], *callbacks: pl.Callback) -> None:
    try:
        finetune(overrides, checkpoints=True, callbacks=callbacks)
    except Interrupted:
        return
    raise AssertionError("the run was not interrupted")


def count_saves(overrides: dict[str, Any]) -> list[int]:
    """Train, and return the step of every checkpoint that was written."""
    counter = CountSaves()
    finetune(overrides, checkpoints=True, callbacks=[counter])
    return counter.steps
