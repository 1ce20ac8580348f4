"""When a run saves, and what it leaves beside its newest checkpoint."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nemo import lightning as nl
from nemo.lightning.ckpt_utils import ckpt_to_dir
from torch import Tensor

from nemo_longpo.checkpoints.run_directory import LAST, list_checkpoints, point_last_link
from nemo_longpo.errors import InputError

from .together import gather_from_all


class RunCheckpoint(nl.ModelCheckpoint):
    """NeMo's checkpoints of a run, which also

    - are named after the optimizer steps that they hold (`global_step=4`);
    - have the last step among them, whatever `every_n_train_steps` is, once;
    - take what lies in the folder for the run's state, not the paths that a checkpoint remembers, which are others
      after a move, and not links; what is not complete is never counted among the `save_top_k`.
    """

    def setup(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        super().setup(trainer, *args, **kwargs)  # removes what was not finished
        _require_one_choice(str(trainer.ckpt_path))
        newest = list_checkpoints(self._folder).newest
        if trainer.is_global_zero and newest and self.save_last:
            point_last_link(newest)
        trainer.strategy.barrier("checkpoints")

    @property
    def _folder(self) -> Path:
        return Path(str(self.dirpath))

    @property
    def _saved_checkpoint_paths(self) -> Iterable[Path]:
        return list_checkpoints(self._folder).complete

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step  # what the run begins with lies somewhere already
        newest = list_checkpoints(self._folder).newest
        self.last_model_path = f"{newest.with_name(newest.name.removesuffix(LAST) + LAST)}.ckpt" if newest else ""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Instead of NeMo's, which leaves out a run of one step and makes a checkpoint of any other name's place."""
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def _monitor_candidates(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """NeMo logs the step before it is taken."""
        return {**super()._monitor_candidates(trainer), "global_step": torch.tensor(trainer.global_step)}

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Over nothing: parts of a damaged checkpoint of the same step would stay in the new one."""
        directory = ckpt_to_dir(filepath)
        if trainer.is_global_zero and directory.is_symlink():
            directory.unlink()
        elif trainer.is_global_zero and directory.is_dir():
            shutil.rmtree(directory)
        super()._save_checkpoint(trainer, filepath)


def _require_one_choice(choice: str) -> None:
    """Every rank looked into the run's directory on its own. Raises InputError if they saw different things."""
    choices = gather_from_all(choice)
    other = next((rank for rank, chosen in enumerate(choices) if chosen != choices[0]), None)
    if other is not None:
        raise InputError(
            f"Rank 0 begins with checkpoint {choices[0]} and rank {other} with {choices[other]}; log.log_dir must be a "
            "directory that all ranks share."
        )
