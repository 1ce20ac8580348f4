"""What a run does beside training, at the events of Lightning and NeMo: metrics, its inputs, the reference."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.lightning import io, megatron_parallel
from nemo.utils import AppState
from torch import Tensor

from nemo_longpo.checkpoints import run_directory
from nemo_longpo.megatron import loss, reference_guard, run_inputs, step_record, topology


class MetricsCallback(pl.Callback, io.IOMixin):
    """Writes the metrics of each optimizer step: to TensorBoard through Lightning, and to `metrics.jsonl` beside its
    files, see `StepRecord`. The first rank says in `status.json` how far it has come."""

    _record: step_record.StepRecord | None = None  # once training has started

    def __init__(self, filename: str = run_directory.METRICS):
        self.filename = filename

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not NeMo's own log_dir: a resumed run moves the files there to another directory.
        self._record = step_record.StepRecord(
            Path(trainer.log_dir or trainer.default_root_dir) / self.filename,
            step=trainer.global_step,
            steps=trainer.max_steps if trainer.max_steps > 0 else None,
            pairs=trainer.datamodule.global_batch_size,  # type: ignore[attr-defined]
            devices=trainer.world_size,
            is_first_rank=trainer.is_global_zero,
        )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._record:
            self._record.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._record:
            self._record.end(exception)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        assert self._record
        self._record.begin_step()

    def on_megatron_step_end(self, step: megatron_parallel.MegatronStep, reduced: dict[str, Tensor] | Tensor) -> None:
        names = (*step.trainer.lightning_module.objective.metrics, *loss.WORK)
        self._values = step_record.from_last_stage(names, reduced if isinstance(reduced, dict) else None)
        self._lr = step.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        assert self._record
        logged = trainer.callback_metrics
        record = self._record.end_step(
            trainer.global_step,
            self._values,
            lr=self._lr,
            grad_norm=float(logged.get("grad_norm", torch.nan)),
            is_skipped=bool(logged.get("skipped")),
        )
        shown = {name: value for name, value in record.items() if name not in ("step", "grad_norm", "skipped")}
        pl_module.log_dict(shown, batch_size=1)


def inputs_directory() -> Path | None:
    """Return the directory beside a run's checkpoints where its inputs are recorded; None without a run directory.

    It is a directory because NeMo moves files beside the checkpoints away at every resume.
    """
    log_dir = AppState().log_dir
    return None if log_dir is None else Path(log_dir) / run_directory.INPUTS


class KeepInputs(pl.Callback):
    """Records the fingerprints of start checkpoint and shards at the start, and refuses others when a run is resumed;
    see `hold_inputs`."""

    def __init__(self, start: Path | None, accept_changes: bool):
        self.start = start
        self.accept_changes = accept_changes

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Run after the data module. Raises InputError on all ranks if the inputs changed or cannot be recorded."""
        directory = inputs_directory()
        if stage != "fit" or directory is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        hold = partial(
            run_inputs.hold_inputs,
            directory,
            self.start,
            data.readers,
            pl_module.objective,
            resumed=run_directory.checkpoint_of(trainer.ckpt_path) if trainer.ckpt_path else None,
            accept_changes=self.accept_changes,
        )
        topology.raise_on_all(hold, here=trainer.is_global_zero)


class ReferenceGuard(pl.Callback):
    """Compares the policy of a new run with the reference, before the first step; see `reference_guard.Policy`.

    A resumed run is not checked, nor one without a start checkpoint or with a loss that reads no reference.
    """

    def __init__(self, start: Path | None):
        self.start = start
        self.is_new = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.is_new = stage == "fit" and not trainer.ckpt_path

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not (self.is_new and self.start and pl_module.objective.ref_context):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        strategy: Any = trainer.strategy
        policy = reference_guard.Policy(
            modules=list(strategy.megatron_parallel),
            run=loss.logprobs_of,
            layout=pl_module.pair_layout,
            rope=pl_module.rope,
            dtype=reference_guard.dtype_of(pl_module.config),
            start=self.start,
            forward_context=strategy.precision_plugin.val_step_context,
        )
        policy.compare(data.readers, data.check_reference, data.check_reference_samples, data.seq_length)
