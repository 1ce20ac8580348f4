"""Jobs of a `WorkerPool` worker for tests of resuming: runs that end early."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from support.jobs.nemo_jobs import finetune


def finetune_until(overrides: dict[str, Any], step: int) -> None:
    """Train up to a step and stop before its checkpoint."""
    from support.jobs.callbacks import InterruptAfter

    _run_until_interrupted(overrides, InterruptAfter(step))


def finetune_until_removal(overrides: dict[str, Any]) -> None:
    """Train until the first checkpoint that was replaced is half removed."""
    from nemo.lightning import MegatronStrategy
    from support.jobs.callbacks import Interrupted

    def remove_half(strategy: MegatronStrategy, path: str | Path) -> None:
        if strategy.is_global_zero:
            shutil.rmtree(Path(path).with_suffix("") / "weights")
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MegatronStrategy, "remove_checkpoint", remove_half)
        _run_until_interrupted(overrides)


def exit_status_after_sigterm(overrides: dict[str, Any], step: int) -> object:
    """Send every rank SIGTERM after a step, as Slurm does, and return what the program would end with."""
    from support.jobs.callbacks import KillAfter

    with pytest.raises(SystemExit) as left:
        finetune(overrides, checkpoints=True, callbacks=[KillAfter(step, signal.SIGTERM)])
    return left.value.code


def _run_until_interrupted(overrides: dict[str, Any], *callbacks: Any) -> None:
    from support.jobs.callbacks import Interrupted

    try:
        finetune(overrides, checkpoints=True, callbacks=callbacks)
    except Interrupted:
        return
    raise AssertionError("the run was not interrupted")


def count_saves(overrides: dict[str, Any]) -> list[int]:
    """Train, and return the step of every checkpoint that was written."""
    from support.jobs.callbacks import CountSaves

    counter = CountSaves()
    finetune(overrides, checkpoints=True, callbacks=[counter])
    return counter.steps
