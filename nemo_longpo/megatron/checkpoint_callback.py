"""What makes a checkpoint complete, and the record of its files."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import lightning.pytorch as pl
from nemo.lightning.ckpt_utils import ckpt_to_dir
from nemo.lightning.io.pl import TrainerContext
from nemo.utils import logging

from nemo_longpo.atomic import explain_full_disk
from nemo_longpo.checkpoints.recorder import Recorder
from nemo_longpo.errors import InputError

from .checkpointing import RunCheckpoint
from .full_disk import GOES_ON


class LongPOCheckpoint(RunCheckpoint):
    """The checkpoints of a run, with a record of the sizes and hashes of their files.

    A checkpoint is complete when its weights and its context are written; only then its mark as unfinished goes. NeMo
    writes the context with a warning for every failure, a full disk too, and takes the checkpoint for complete. Here it
    is written first of all that finalises a save, and a failure ends the run. `always_save_context` and
    `save_context_on_train_end` are without effect: a checkpoint always has its context.

    The record comes last, from a thread of the first rank, after the finalisation of an asynchronous save too. A
    checkpoint whose run is killed before is usable, and nobody can tell later whether its files changed.
    """

    def setup(self, trainer: pl.Trainer, *args, **kwargs) -> None:
        super().setup(trainer, *args, **kwargs)
        self.always_save_context = self.save_context_on_train_end = False

    @cached_property
    def _recorder(self) -> Recorder:
        """Asked for by a run that is refused before `setup`, too."""
        return Recorder()

    def _get_finalize_save_checkpoint_callback(
        self, trainer: pl.Trainer, filepath: str, global_step: int
    ) -> Callable[[], None]:
        finalize = super()._get_finalize_save_checkpoint_callback(trainer, filepath, global_step)
        checkpoint = Path(ckpt_to_dir(filepath))

        def write_context_and_finalize() -> None:
            problem = _write_context(trainer, checkpoint) if trainer.is_global_zero else None
            problem = trainer.strategy.broadcast(problem)
            if problem:
                raise InputError(problem)
            finalize()
            if trainer.is_global_zero:
                self._recorder.record(checkpoint)

        return write_context_and_finalize

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str, override_async: bool = False) -> None:
        self._recorder.forget(Path(ckpt_to_dir(filepath)))
        super()._remove_checkpoint(trainer, filepath, override_async)

    def on_train_batch_end(self, *args, **kwargs) -> None:
        self._recorder.collect(wait=False)
        super().on_train_batch_end(*args, **kwargs)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The end of a run: an asynchronous last save is finalised by now."""
        super().teardown(trainer, pl_module, stage)
        for checkpoint in self._recorder.unfinished:
            logging.info(f"Recording the hashes of {checkpoint} before the run ends")
        self._recorder.collect(wait=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._recorder.forget_all()
        super().on_exception(trainer, pl_module, exception)


def _write_context(trainer: pl.Trainer, checkpoint: Path) -> str | None:
    """Why it could not be written, if the disk is full."""
    try:
        with explain_full_disk(checkpoint / "context", GOES_ON):
            TrainerContext.from_trainer(trainer).io_dump(checkpoint / "context", yaml_attrs=["model"])
    except InputError as error:
        return str(error)
    return None
