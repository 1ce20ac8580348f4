"""Save the checkpoints of a run, mark them complete and record their files."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.lightning import ModelCheckpoint, ckpt_utils, io
from nemo.utils import logging

from nemo_longpo.atomic import explain_full_disk
from nemo_longpo.checkpoints import integrity, run_directory
from nemo_longpo.errors import InputError
from nemo_longpo.megatron import held_directory
from nemo_longpo.megatron.topology import gather_from_all, raise_on_all


class LongPOCheckpoint(ModelCheckpoint):
    """NeMo's checkpoints of a run, with a record of the sizes and hashes of their files.

    They are named after their optimizer step (`global_step=4`). The last step is saved exactly once, whatever
    `every_n_train_steps` is. The folders beside each other are the run's state; links do not count, nor do the paths
    inside a checkpoint, which are wrong after a move. Incomplete checkpoints never count for `save_top_k`.

    A checkpoint is complete when its weights and its context are written; only then its mark as unfinished is removed.
    If writing the context fails, NeMo only warns and treats the checkpoint as complete. Here the context is written
    before anything else that finalises a save, and a failure ends the run. `always_save_context` and
    `save_context_on_train_end` have no effect: a checkpoint always has its context.

    The record is written last, by a thread of the first rank, also after an asynchronous save. If the run is killed
    before that, the checkpoint is usable, but later changes of its files cannot be detected.
    """

    def setup(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        inputs = run_directory.beside_checkpoints(self._folder).inputs
        self._held.enter_context(held_directory.held(inputs, first=trainer.is_global_zero))
        super().setup(trainer, *args, **kwargs)  # removes unfinished checkpoints
        self.always_save_context = self.save_context_on_train_end = False
        _require_one_choice(str(trainer.ckpt_path))
        newest = run_directory.list_checkpoints(self._folder).newest
        if trainer.is_global_zero and newest and self.save_last:
            run_directory.point_last_link(newest)
        trainer.strategy.barrier("checkpoint_setup")

    @property
    def _folder(self) -> Path:
        return Path(str(self.dirpath))

    @property
    def _saved_checkpoint_paths(self) -> Iterable[Path]:
        return run_directory.list_checkpoints(self._folder).complete

    @cached_property
    def _recorder(self) -> integrity.Recorder:
        """The recorder, made on first use; in a run that is refused, that may be before `setup`."""
        return integrity.Recorder()

    @cached_property
    def _held(self) -> ExitStack:
        """What keeps other runs out while this one is at work."""
        return ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step  # the run's start state is saved somewhere already
        newest = run_directory.list_checkpoints(self._folder).newest
        last = run_directory.LAST
        self.last_model_path = f"{newest.with_name(newest.name.removesuffix(last) + last)}.ckpt" if newest else ""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._recorder.collect(wait=False)
        super().on_train_batch_end(*args, **kwargs)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step. NeMo's own skips a run of one step and overwrites a checkpoint of another name."""
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for the records at the end of a run; an asynchronous last save is finalised by then."""
        super().teardown(trainer, pl_module, stage)
        for checkpoint in self._recorder.unfinished:
            logging.info(f"Recording the hashes of {checkpoint} before the run ends")
        self._recorder.collect(wait=True)
        self._held.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._recorder.forget_all()
        super().on_exception(trainer, pl_module, exception)
        self._held.close()

    def _monitor_candidates(self, trainer: pl.Trainer) -> dict[str, torch.Tensor]:
        """Return NeMo's values with the number of the finished step; NeMo gives the one before it."""
        return {**super()._monitor_candidates(trainer), "global_step": torch.tensor(trainer.global_step)}

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Remove a damaged checkpoint of the same step first: its files would stay in the new one."""
        directory = ckpt_utils.ckpt_to_dir(filepath)
        if trainer.is_global_zero and directory.is_symlink():
            directory.unlink()
        elif trainer.is_global_zero and directory.is_dir():
            shutil.rmtree(directory)
        super()._save_checkpoint(trainer, filepath)

    def _get_finalize_save_checkpoint_callback(
        self, trainer: pl.Trainer, filepath: str, global_step: int
    ) -> Callable[[], None]:
        finalize = super()._get_finalize_save_checkpoint_callback(trainer, filepath, global_step)
        checkpoint = Path(ckpt_utils.ckpt_to_dir(filepath))

        def write_context_and_finalize() -> None:
            raise_on_all(partial(_write_context, trainer, checkpoint / "context"), here=trainer.is_global_zero)
            finalize()
            if trainer.is_global_zero:
                self._recorder.record(checkpoint)

        return write_context_and_finalize

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str, override_async: bool = False) -> None:
        self._recorder.forget(Path(ckpt_utils.ckpt_to_dir(filepath)))
        super()._remove_checkpoint(trainer, filepath, override_async)


def _write_context(trainer: pl.Trainer, context: Path) -> None:
    with explain_full_disk(context, run_directory.GOES_ON):
        io.TrainerContext.from_trainer(trainer).io_dump(context, yaml_attrs=["model"])


def _require_one_choice(choice: str) -> None:
    """Compare the ranks' choices. Raises InputError if they found different checkpoints in the run's directory."""
    choices = gather_from_all(choice)
    other = next((rank for rank, chosen in enumerate(choices) if chosen != choices[0]), None)
    if other is not None:
        raise InputError(
            f"Rank 0 begins with checkpoint {choices[0]} and rank {other} with {choices[other]}; log.log_dir must be a "
            "directory that all ranks share."
        )
