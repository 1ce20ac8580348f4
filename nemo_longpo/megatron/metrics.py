"""Write the metrics of each optimizer step: to TensorBoard through Lightning, and to `metrics.jsonl`."""

import json
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from nemo.lightning import io, megatron_parallel
from nemo.utils import logging
from torch import Tensor, distributed as dist

from nemo_longpo import live_status
from nemo_longpo.atomic import explain_full_disk
from nemo_longpo.checkpoints import run_directory
from nemo_longpo.costs.devices import peak_of_device

from . import model, topology

_SHOWN = {"loss": "loss", "rewards/margins": "margin", "tokens_per_second": "tokens/s"}


class MetricsCallback(pl.Callback, io.IOMixin):
    """Appends one JSON object per optimizer step to `metrics.jsonl`, beside the TensorBoard files.

    Keys: `step` (from 1), the names of `Objective.metrics` (means over the global batch's pairs), `lr`, `grad_norm`,
    `tokens_per_second` (trunk and both branches of every pair, and of every short prompt that is read),
    `tflops_per_device` (10¹² FLOPs per second that forward and backward of the pairs need; recompute does not count),
    `mfu` (their share of the device's bf16 peak, only if the peak is known), `memory_gib` (the most that tensors have
    taken on the first rank's GPU so far, 2³⁰ bytes) and `step_seconds`; `skipped` is 1 in the line of a step that was
    left out, and missing in others. After a resume, lines of steps that will be trained again are dropped. The first
    rank says in `status.json` how far it has come.
    """

    _status: live_status.StatusFile | None = None  # of the first rank, once training has started

    def __init__(self, filename: str = run_directory.METRICS):
        self.filename = filename

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not NeMo's own log_dir: a resumed run moves the files there to another directory.
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / self.filename
        if trainer.is_global_zero and (unreadable := run_directory.keep_steps(self._path, trainer.global_step)):
            logging.warning(f"{self._path}: dropped {unreadable} torn or foreign line(s)")
        self._status = self._open_status(trainer) if trainer.is_global_zero else None

    def _open_status(self, trainer: pl.Trainer) -> live_status.StatusFile:
        log_dir, total = run_directory.log_dir_of(self._path), trainer.max_steps if trainer.max_steps > 0 else None
        return live_status.StatusFile(
            log_dir, f"training {self._path.parent.name}", done=trainer.global_step, total=total, unit="step"
        )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._status:
            self._status.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._status:
            self._status.end(exception)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        self._started = time.perf_counter()

    def on_megatron_step_end(self, step: megatron_parallel.MegatronStep, reduced: dict[str, Tensor] | Tensor) -> None:
        """Send the metrics from the last pipeline stage, which computed them, to all stages."""
        here = topology.current_topology()
        names = (*step.trainer.lightning_module.objective.metrics, *model.WORK)
        values = (
            torch.stack([reduced[name] for name in names])
            if isinstance(reduced, dict)
            else torch.zeros(len(names), device=torch.cuda.current_device())
        )
        if here.pp_group.size() > 1:
            dist.broadcast(values, here.pp_last_rank, group=here.pp_group)
        self._values = dict(zip(names, values.tolist(), strict=True))
        self._values["lr"] = step.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        seconds = time.perf_counter() - self._started
        pairs = trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        tokens, flops = (pairs * self._values.pop(name) for name in model.WORK)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        record = {
            "step": trainer.global_step,
            **self._values,
            "grad_norm": float(trainer.callback_metrics.get("grad_norm", torch.nan)),
            "tokens_per_second": tokens / seconds,
            **compute_speed(flops / seconds / trainer.world_size, device),
            **({} if device is None else {"memory_gib": torch.cuda.max_memory_allocated() / 2**30}),
            "step_seconds": seconds,
            **({"skipped": 1} if trainer.callback_metrics.get("skipped") else {}),
        }
        shown = {name: value for name, value in record.items() if name not in ("step", "grad_norm", "skipped")}
        pl_module.log_dict(shown, batch_size=1)
        if trainer.is_global_zero:
            with explain_full_disk(self._path, run_directory.GOES_ON), self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self._status:
            self._status.update(done=record["step"], metrics=record, said=live_status.shown_metrics(record, _SHOWN))


def compute_speed(flops_per_second: float, device_name: str | None) -> dict[str, float]:
    """Return `tflops_per_device`, and `mfu` if the device's peak is known."""
    peak = None if device_name is None else peak_of_device(device_name)
    speed = {"tflops_per_device": flops_per_second / 1e12}
    return speed if peak is None else speed | {"mfu": flops_per_second / peak}
