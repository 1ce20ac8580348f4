"""A resumed run must have what it began with, and a new one says at its start whose log-probs it trains on."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from nemo.utils import logging
from nemo.utils.app_state import AppState

from nemo_longpo.checkpoints.integrity import fingerprint
from nemo_longpo.checkpoints.run_directory import INPUTS
from nemo_longpo.checkpoints.run_inputs import Given, RunInputs, read_inputs, read_origin, write_inputs
from nemo_longpo.errors import InputError
from nemo_longpo.objective import REF_CONTEXT_OF_LOSS
from nemo_longpo.shards.reader import ShardReader

from .together import raise_on_all

_LOSS = ("loss_type", "beta", "preference_weight")


def inputs_directory() -> Path | None:
    """Return the directory beside a run's checkpoints where its inputs are recorded; None without a run directory.

    It is a directory because NeMo moves files that lie beside the checkpoints away at every resume.
    """
    log_dir = AppState().log_dir
    return None if log_dir is None else Path(log_dir) / INPUTS


class KeepInputs(pl.Callback):
    """Records the fingerprints of start checkpoint and shards at the start, and refuses others when a run is resumed.

    A run without a checkpoint starts anew, with whatever it is given. Another loss is only logged.
    """

    def __init__(self, start: Path | None, accept_changes: bool):
        self.start = start
        self.accept_changes = accept_changes

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Runs after the data module's. Raises InputError on all ranks if the inputs changed or cannot be recorded."""
        directory = inputs_directory()
        if stage != "fit" or directory is None:
            return
        raise_on_all(partial(self._hold, trainer, pl_module, directory), here=trainer.is_global_zero)

    def _hold(self, trainer: pl.Trainer, model: Any, directory: Path) -> None:
        readers: list[ShardReader] = trainer.datamodule.readers  # type: ignore[attr-defined]
        found = RunInputs(
            None if self.start is None else Given(str(self.start), fingerprint(self.start)),
            tuple(Given(str(reader.directory), reader.manifest.fingerprint) for reader in readers),
            {f"model.objective.{name}": getattr(model.objective, name) for name in _LOSS},
        )
        begun = read_inputs(directory) if trainer.ckpt_path else None
        if begun is not None:
            for change in found.loss_changes_from(begun):
                logging.warning(f"This run goes on with {change}")
            self._refuse(list(found.changes_from(begun)))
        elif not trainer.ckpt_path and self.start and REF_CONTEXT_OF_LOSS[model.objective.loss_type]:
            warn_of_other_reference(self.start, readers)
        write_inputs(directory, found)

    def _refuse(self, changes: list[str]) -> None:
        if not changes:
            return
        if not self.accept_changes:
            raise InputError(
                f"{'; '.join(changes)}. Give what the run began with, begin another run in a new log.log_dir, or set "
                "resume.accept_changes=True if it is meant."
            )
        for change in changes:
            logging.warning(f"{change}; resume.accept_changes=True says that it is meant")


def warn_of_other_reference(start: Path, readers: list[ShardReader]) -> None:
    """Log a line if the weights that training starts from did not score the shards, or if that cannot be told."""
    weights = read_origin(start)
    if weights is None:
        logging.info(f"{start} does not say which weights it was made of, so not whether they scored the shards")
        return
    others = [reader for reader in readers if reader.manifest.reference.weights_sha256 != weights]
    if others:
        scored = ", ".join(
            f"{reader.directory} by {reader.manifest.reference.weights_sha256[:12]}…" for reader in others
        )
        logging.warning(
            f"Training starts from other weights than those that scored the shards: {start} was made of "
            f"{weights[:12]}…, and scored were {scored}. Go on if it is meant; else import the model that scored them."
        )
